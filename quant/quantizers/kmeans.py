"""The best 2^b values for the weights themselves in the squared error; they are stored."""

from __future__ import annotations

from dataclasses import dataclass

from quant.quantizers._clusters import Clustered


@dataclass(frozen=True, kw_only=True)
class Kmeans(Clustered):
    """k-means in one dimension: the codebook costs 2^b statistics a group."""

    kind = "kmeans"
    norm = "l2"
    source = "Wang and Song 2011; Han et al. 2016"
    formula = "c_k, 2^b values of least squared error"


QUANTIZER = Kmeans
