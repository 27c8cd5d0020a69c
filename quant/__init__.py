"""Low-bit weights: codebooks, quantisers, training with them, packed files, and how Gaussian weights are.

Importing this package loads nothing heavy; a public name loads its module when it is first used. Packing is left out
(``from quant.pack import pack``): a function and its module cannot share one name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quant.codebooks import Codebook
    from quant.distribution import (
        distortion_ratio,
        distortion_ratio_null,
        fit_laws,
        trained_share,
        w1_null,
        w1_to_normal,
    )
    from quant.errors import QuantError
    from quant.fake import QuantLinear, bake, fake_quantize
    from quant.lowbit import Lowbit, LowbitTensor, read_lowbit, write_lowbit
    from quant.quantizers.base import Grid, Quantizer

__all__ = [
    "Codebook",
    "Grid",
    "Lowbit",
    "LowbitTensor",
    "QuantError",
    "QuantLinear",
    "Quantizer",
    "bake",
    "distortion_ratio",
    "distortion_ratio_null",
    "fake_quantize",
    "fit_laws",
    "read_lowbit",
    "trained_share",
    "w1_null",
    "w1_to_normal",
    "write_lowbit",
]

_MODULES = {
    "Codebook": "codebooks",
    "Grid": "quantizers.base",
    "Lowbit": "lowbit",
    "LowbitTensor": "lowbit",
    "QuantError": "errors",
    "QuantLinear": "fake",
    "Quantizer": "quantizers.base",
    "bake": "fake",
    "distortion_ratio": "distribution",
    "distortion_ratio_null": "distribution",
    "fake_quantize": "fake",
    "fit_laws": "distribution",
    "read_lowbit": "lowbit",
    "trained_share": "distribution",
    "w1_null": "distribution",
    "w1_to_normal": "distribution",
    "write_lowbit": "lowbit",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
