"""The best 2^b values for the weights themselves in the absolute error; they are stored."""

from __future__ import annotations

from dataclasses import dataclass

from quant.quantizers._clusters import Clustered


@dataclass(frozen=True, kw_only=True)
class Kmedians(Clustered):
    """k-medians in one dimension: the codebook costs 2^b statistics a group."""

    kind = "kmedians"
    norm = "l1"
    source = "as kmeans, in the norm of Jie, Wang and Deng 2023"
    formula = "c_k, 2^b values of least absolute error"


QUANTIZER = Kmedians
