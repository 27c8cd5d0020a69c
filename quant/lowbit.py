"""The .lowbit container, version 0: what is deployed of a fine-tuned model, packed, checked on reading.

Layout (little-endian): magic ``LOWB``; u16 version; u32 length of the header; the header, JSON in UTF-8, with
``header`` (the writer's own) and ``tensors`` (name, shape, bits, quantizer, statistics: their count); the payload,
tensor after tensor: packed codes then float32 statistics, or float32 values (32 bits); SHA-256 of all before it.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from figures.atomic import write_bytes
from quant.errors import QuantError
from quant.pack import pack, packed_bytes, unpack
from quant.quantizers import get

if TYPE_CHECKING:
    import pandas as pd

MAGIC, VERSION = b"LOWB", 0
_PREFIX = struct.Struct("<4sHI")
_DIGEST = hashlib.sha256().digest_size
_MAX_DIMS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class LowbitTensor:
    """One tensor: codes with the statistics of their grid (1 to 8 bits), or float32 values (32 bits).

    Raises
    ------
    QuantError
        If its parts do not fit together: shape, dtype, a code beyond the bits, statistics of no use to its quantiser.
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    quantizer: str | None = None
    codes: Tensor | None = field(default=None, repr=False)
    statistics: Tensor | None = field(default=None, repr=False)
    values: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.bits == 32:
            if (self.quantizer, self.codes, self.statistics) != (None, None, None):
                raise QuantError(f"{self.name}: expected no quantizer, codes or statistics at 32 bits")
            _check(self.name, "values", self.values, self.shape, torch.float32)
            return
        if self.quantizer is None or self.statistics is None or self.values is not None:
            raise QuantError(
                f"{self.name}: expected quantizer, codes and statistics at {self.bits} bits, and no values"
            )
        get(self.quantizer, self.bits).grid(self.statistics, self.shape)
        codes = _check(self.name, "codes", self.codes, self.shape, torch.uint8)
        if int(codes.max()) >> self.bits:
            raise QuantError(f"{self.name}: expected codes below {1 << self.bits}, found {int(codes.max())}")

    @classmethod
    def quantised(cls, name: str, w: Tensor, *, quantizer: str, bits: int) -> LowbitTensor:
        """The tensor as its quantiser stores it."""
        grid = get(quantizer, bits).fit(w)
        codes, statistics = grid.codes(w).cpu(), grid.statistics.cpu()
        return cls(name=name, shape=tuple(w.shape), bits=bits, quantizer=quantizer, codes=codes, statistics=statistics)

    @classmethod
    def plain(cls, name: str, w: Tensor) -> LowbitTensor:
        """The tensor as float32 values."""
        return cls(name=name, shape=tuple(w.shape), bits=32, values=w.detach().float().cpu().clone())

    @property
    def nbytes(self) -> int:
        """Bytes in the payload."""
        return _nbytes(math.prod(self.shape), self.bits, 0 if self.statistics is None else self.statistics.numel())

    def dense(self) -> Tensor:
        """The values, float32, bit-equal to those of the forward pass in training (float32, same device type)."""
        if self.values is not None:
            return self.values.clone()
        assert self.quantizer is not None
        assert self.statistics is not None
        assert self.codes is not None
        return get(self.quantizer, self.bits).grid(self.statistics, self.shape).values(self.codes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Lowbit:
    """A file's content: the writer's header (anything JSON) and the tensors, in order, under unique names."""

    header: dict[str, Any]
    tensors: list[LowbitTensor]

    def sizes(self) -> dict[str, int]:
        """Bytes of each tensor in the payload. The file has its header and 42 bytes more: its size is the file's."""
        return {t.name: t.nbytes for t in self.tensors}

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


def write_lowbit(path: Path | str, lowbit: Lowbit) -> None:
    """Write the file whole or not at all; equal content gives equal bytes.

    Raises
    ------
    QuantError
        If two tensors share a name, or the header is not plain JSON.
    """
    if len({t.name for t in lowbit.tensors}) != len(lowbit.tensors):
        raise QuantError(f"expected unique tensor names, found {[t.name for t in lowbit.tensors]}")
    entries, payload = [], []
    for t in lowbit.tensors:
        stored = 0 if t.statistics is None else t.statistics.numel()
        entries.append(
            {"name": t.name, "shape": list(t.shape), "bits": t.bits, "quantizer": t.quantizer, "statistics": stored}
        )
        payload += [pack(t.codes.cpu(), t.bits)] if t.codes is not None else []
        payload += [_float_bytes(x) for x in (t.statistics, t.values) if x is not None]
    try:
        header = {"header": lowbit.header, "tensors": entries}
        text = json.dumps(header, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise QuantError(f"expected a header of plain JSON: {error}") from None
    body = b"".join([_PREFIX.pack(MAGIC, VERSION, len(text)), text, *payload])
    write_bytes(path, body + hashlib.sha256(body).digest())


def read_lowbit(path: Path | str) -> Lowbit:
    """Read and check a file. No more is read or allocated than the file is long, whatever its header promises.

    Raises
    ------
    QuantError
        If it is no such file, of another version, truncated, changed or contradicts itself; the text names the file.
    """
    path = Path(path)
    try:
        return _read(path)
    except QuantError as error:
        raise QuantError(f"{path}: {error}") from None


def _read(path: Path) -> Lowbit:
    total = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(_PREFIX.size)
        if prefix[: len(MAGIC)] != MAGIC:
            raise QuantError(f"expected a .lowbit file, which begins with {MAGIC!r}, found {prefix[: len(MAGIC)]!r}")
        if len(prefix) < _PREFIX.size:
            raise QuantError(f"expected at least {_PREFIX.size} bytes, found {total}: truncated")
        _, version, length = _PREFIX.unpack(prefix)
        if version != VERSION:
            raise QuantError(f"expected version {VERSION} of the format, found {version}")
        if (least := _PREFIX.size + length + _DIGEST) > total:
            raise QuantError(f"expected at least {least} bytes by the length of the header, found {total}: truncated")
        text = file.read(length)
        header, entries = _parse(text)
        expected = least + sum(_nbytes(math.prod(e["shape"]), e["bits"], e["statistics"]) for e in entries)
        if expected != total:
            raise QuantError(f"expected {expected} bytes by the header, found {total}: truncated or changed")
        payload, digest = file.read(expected - least), file.read(_DIGEST)
    if hashlib.sha256(prefix + text + payload).digest() != digest:
        raise QuantError("expected the SHA-256 at the end of the file, found another: the content was changed")
    tensors, at = [], 0
    for e in entries:
        size = _nbytes(math.prod(e["shape"]), e["bits"], e["statistics"])
        tensors.append(_decode(e, payload[at : at + size]))
        at += size
    return Lowbit(header=header, tensors=tensors)


def _parse(text: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The writer's header and the entries of the tensors, each known to have the right types and sizes.

    Raises
    ------
    QuantError
        If the text is not JSON, or a part of it is missing or out of its range.
    """
    try:
        both = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise QuantError(f"expected a header of JSON: {error}") from None
    if not isinstance(both, dict) or set(both) != {"header", "tensors"}:
        raise QuantError("expected a header with 'header' and 'tensors' and nothing else")
    header, entries = both["header"], both["tensors"]
    if not isinstance(header, dict) or not isinstance(entries, list):
        raise QuantError("expected an object as 'header' and a list as 'tensors'")
    seen: set[str] = set()
    for e in entries:
        if not isinstance(e, dict) or set(e) != {"name", "shape", "bits", "quantizer", "statistics"}:
            raise QuantError("expected name, shape, bits, quantizer and statistics of each tensor, found other fields")
        name, shape, low = e["name"], e["shape"], e["bits"] != 32
        if not isinstance(name, str) or name in seen:
            raise QuantError(f"expected unique names of tensors, found {name!r}")
        if not isinstance(shape, list) or len(shape) > _MAX_DIMS or not all(_is_int(n, 1, 2**48) for n in shape):
            raise QuantError(f"{name}: expected a shape of at most {_MAX_DIMS} sizes from 1, found {str(shape)[:80]}")
        if not (_is_int(e["bits"], 1, 8) or _is_int(e["bits"], 32, 32)):
            raise QuantError(f"{name}: expected bits from 1 to 8, or 32, found {str(e['bits'])[:80]}")
        if not _is_int(e["statistics"], 0, 2**32) or not isinstance(e["quantizer"], str if low else type(None)):
            raise QuantError(f"{name}: expected a quantizer and statistics below 32 bits, and a count of statistics")
        seen.add(name)
    return header, entries


def _decode(entry: dict[str, Any], data: bytes) -> LowbitTensor:
    name, shape, bits = entry["name"], tuple(entry["shape"]), entry["bits"]
    try:
        if bits == 32:
            if entry["statistics"]:
                raise QuantError("expected no statistics at 32 bits")
            return LowbitTensor(name=name, shape=shape, bits=32, values=_floats(data).reshape(shape))
        end = len(data) - 4 * entry["statistics"]
        codes = torch.from_numpy(unpack(data[:end], bits, math.prod(shape))).reshape(shape)
        quantizer, statistics = entry["quantizer"], _floats(data[end:])
        return LowbitTensor(name=name, shape=shape, bits=bits, quantizer=quantizer, codes=codes, statistics=statistics)
    except QuantError as error:
        raise QuantError(f"tensor {name!r}: {error}") from None


def _nbytes(count: int, bits: int, statistics: int) -> int:
    return (4 * count if bits == 32 else packed_bytes(count, bits)) + 4 * statistics


def _check(name: str, what: str, x: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if x is None or tuple(x.shape) != tuple(shape) or x.dtype != dtype or not x.numel():
        found = "nothing" if x is None else f"{x.dtype} of shape {tuple(x.shape)}"
        raise QuantError(f"{name}: expected {what} of {dtype}, shape {tuple(shape)}, not empty, found {found}")
    return x


def _is_int(x: object, low: int, high: int) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and low <= x <= high


def _floats(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32))


def _float_bytes(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().numpy().astype("<f4").tobytes()
