"""What a .lowbit file holds: tensors, as codes or plain, and the writer's header."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.header import Entry, is_head
from quant.quantizers import get

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from quant.quantizers.base import Grid

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}
"""Types of plain values under their names in a file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LowbitTensor:
    """One tensor: codes with the statistics of their grid (1 to 8 bits), or plain values (16, 32 or 64 bits).

    Raises
    ------
    QuantError
        If its parts do not fit together: shape, dtype, a code beyond the levels, statistics of no use to its quantiser.
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    quantizer: str | None = None
    codes: Tensor | None = field(default=None, repr=False)
    statistics: Tensor | None = field(default=None, repr=False)
    values: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.bits > 8:
            if (self.quantizer, self.codes, self.statistics) != (None, None, None):
                raise QuantError(f"{self.name}: expected no quantizer, codes or statistics at {self.bits} bits")
            fitting = [d for d in DTYPES.values() if 8 * d.itemsize == self.bits]
            if not fitting:
                raise QuantError(f"{self.name}: expected bits from 1 to 8, 16, 32 or 64, found {self.bits}")
            _check(self.name, "values", self.values, self.shape, fitting)
            return
        if self.quantizer is None or self.statistics is None or self.values is not None:
            raise QuantError(
                f"{self.name}: expected quantizer, codes and statistics at {self.bits} bits, and no values"
            )
        quantizer = get(self.quantizer, self.bits)
        quantizer.grid(self.statistics, self.shape)
        if quantizer.stored == "float16" and not torch.equal(self.statistics.half().float(), self.statistics):
            raise QuantError(
                f"{self.name}: expected statistics that float16 holds exactly, as {self.quantizer} has them"
            )
        codes = _check(self.name, "codes", self.codes, quantizer.codes_shape(self.shape), [torch.uint8])
        if (top := int(codes.max())) >= quantizer.levels:
            raise QuantError(f"{self.name}: expected codes below {quantizer.levels}, found {top}")

    @classmethod
    def quantised(cls, name: str, w: Tensor, *, quantizer: str, bits: int) -> LowbitTensor:
        """The tensor as its quantiser stores it."""
        return cls.on_grid(name, w, get(quantizer, bits).fit(w))

    @classmethod
    def on_grid(cls, name: str, w: Tensor, grid: Grid) -> LowbitTensor:
        """The tensor as a grid stores it that was fitted before, or trained."""
        codes, statistics = grid.codes(w).cpu(), grid.statistics.cpu()
        kind, bits = grid.quantizer.name, grid.quantizer.bits
        return cls(name=name, shape=tuple(w.shape), bits=bits, quantizer=kind, codes=codes, statistics=statistics)

    @classmethod
    def plain(cls, name: str, w: Tensor) -> LowbitTensor:
        """The tensor with its values as they are.

        Raises
        ------
        QuantError
            If they are not float16, bfloat16, float32 or float64.
        """
        if w.dtype not in DTYPES.values():
            wanted = ", ".join(str(d) for d in reversed(DTYPES.values()))
            raise QuantError(f"{name}: expected values of {wanted}, found {w.dtype}")
        values = w.detach().cpu().clone()
        return cls(name=name, shape=tuple(w.shape), bits=8 * values.dtype.itemsize, values=values)

    @property
    def nbytes(self) -> int:
        """Bytes in the payload, codes dense."""
        return self.entry().nbytes

    def entry(self) -> Entry:
        """The tensor as the file's table lists it."""
        if self.values is not None:
            dtype = next(name for name, dtype in DTYPES.items() if dtype == self.values.dtype)
            return Entry(name=self.name, shape=tuple(self.shape), storage=dtype)
        assert self.quantizer is not None
        assert self.statistics is not None
        assert self.codes is not None
        quantizer = get(self.quantizer, self.bits)
        storage = (self.quantizer, self.bits, quantizer.levels, 2 if quantizer.stored == "float16" else 4)
        count, codes = self.statistics.numel(), tuple(self.codes.shape)
        return Entry(name=self.name, shape=tuple(self.shape), storage=storage, statistics=count, codes=codes)

    def dense(self) -> Tensor:
        """The values, of codes in float32, bit-equal to those of the forward pass in training on this device type."""
        if self.values is not None:
            return self.values.clone()
        assert self.quantizer is not None
        assert self.statistics is not None
        assert self.codes is not None
        return get(self.quantizer, self.bits).grid(self.statistics, self.shape).values(self.codes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Lowbit:
    """A file's content: the writer's header (plain data) and the tensors, in order, under unique names."""

    header: dict[str, Any]
    tensors: list[LowbitTensor]

    def sizes(self) -> dict[str, int]:
        """Bytes of each tensor, its codes dense. A file has header and checksum more, and coded codes may take less."""
        return {t.name: t.nbytes for t in self.tensors}

    def without_head(self) -> Lowbit:
        """What is left without the head's tensors and the names of its classes."""
        header = {key: value for key, value in self.header.items() if key != "classes"}
        return Lowbit(header=header, tensors=[t for t in self.tensors if not is_head(t.name, self.header)])

    def to_frame(self) -> pd.DataFrame:
        """A row a tensor: name, shape, weights, bits, quantizer, size_bytes."""
        import pandas as pd

        columns = ("tensor", "shape", "weights", "bits", "quantizer", "size_bytes")
        rows = [
            (t.name, "x".join(map(str, t.shape)), math.prod(t.shape), t.bits, t.quantizer, t.nbytes)
            for t in self.tensors
        ]
        return pd.DataFrame(rows, columns=list(columns))

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False)


def _check(name: str, what: str, x: Tensor | None, shape: Sequence[int], dtypes: Sequence[torch.dtype]) -> Tensor:
    if x is None or tuple(x.shape) != tuple(shape) or x.dtype not in dtypes or not x.numel():
        found = "nothing" if x is None else f"{x.dtype} of shape {tuple(x.shape)}"
        wanted = " or ".join(str(d) for d in dtypes)
        raise QuantError(f"{name}: expected {what} of {wanted}, shape {tuple(shape)}, not empty, found {found}")
    return x
