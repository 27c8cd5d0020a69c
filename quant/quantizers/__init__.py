"""The quantisers, one a file; the file's name is the quantiser's. A new file here is found by itself."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from quant.errors import QuantError, unknown

if TYPE_CHECKING:
    from quant.quantizers.base import Quantizer


def names() -> list[str]:
    """Names of all quantisers, sorted; imports none of them."""
    return sorted(m.name for m in iter_modules(__path__) if m.name != "base" and not m.name.startswith("_"))


@lru_cache
def get(name: str, bits: int) -> Quantizer:
    """The quantiser of that name at that many bits.

    Raises
    ------
    QuantError
        If there is none of that name, or it does not exist at these bits.
    """
    if name not in names():
        raise QuantError(unknown("quantizer", name, names()))
    return import_module(f"{__name__}.{name}").QUANTIZER(bits=bits)
