"""The quantisers, one a file; the file's name is the quantiser's. A new file here is found by itself.

A quantiser is asked for by one string, ``NAME[/row|/group<N>][/f16]``. ``/row``: a grid for each output row (first
axis). ``/group<N>``: for each N consecutive entries of the flattened tensor, the last may have fewer. Neither: one grid
for the whole tensor. ``/f16``: statistics are rounded to float16 where the grid is fitted, and stored in 2 bytes each.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from quant.errors import QuantError, unknown

if TYPE_CHECKING:
    from quant.quantizers.base import Quantizer

_NAME = re.compile(r"([^/]*)(?:/(row|group[1-9][0-9]{0,8}))?(/f16)?")


def names() -> list[str]:
    """Names of all quantisers, sorted, without scopes; imports none of them."""
    return sorted(m.name for m in iter_modules(__path__) if m.name != "base" and not m.name.startswith("_"))


def parse(name: str) -> tuple[str, str, bool]:
    """The file's name, the scope (empty, ``row`` or ``group<N>``) and whether statistics are float16; imports nothing.

    Raises
    ------
    QuantError
        If it is no ``NAME[/row|/group<N>][/f16]`` with the name of a quantiser.
    """
    kind = name.partition("/")[0]
    if kind not in names():
        raise QuantError(unknown("quantizer", kind, names()))
    found = _NAME.fullmatch(name)
    if not found:
        raise QuantError(f"expected a quantizer NAME[/row|/group<N>][/f16], found {name!r}")
    return kind, found[2] or "", bool(found[3])


def widths(kind: str) -> range:
    """The bits that a quantiser of that name, without scope, exists at; a QuantError if there is none."""
    return _class(kind).widths


@lru_cache
def get(name: str, bits: int) -> Quantizer:
    """The quantiser of that name, ``NAME[/row|/group<N>][/f16]``, at that many bits.

    A QuantError if there is none of that name, or it does not exist at these bits or in this scope.
    """
    kind, scope, half = parse(name)
    return _class(kind)(bits=bits, scope=scope, stored="float16" if half else "float32")


def _class(kind: str) -> type[Quantizer]:
    parse(kind)
    return import_module(f"{__name__}.{kind}").QUANTIZER
