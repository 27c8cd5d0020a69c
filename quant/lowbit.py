"""The .lowbit container, version 1 (docs/lowbit.md): what is deployed of a fine-tuned model, packed and checked.

Magic ``LOWB``; u16 version; length of the header; the header (quant.header); the sections: codes, statistics and values
of the adapter, then those of the head; eight bytes of the SHA-256 of all before. Version 0 is read (quant.legacy).
"""

from __future__ import annotations

import hashlib
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from figures.atomic import write_bytes
from quant import legacy
from quant.content import DTYPES, Lowbit, LowbitTensor
from quant.errors import QuantError
from quant.header import PARTS, Entry, decode_header, encode_header, is_head, sections
from quant.pack import pack, unpack
from quant.quantizers import get

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Lowbit", "LowbitTensor", "from_bytes", "read_lowbit", "to_bytes", "write_lowbit"]

MAGIC, VERSION = b"LOWB", 1
CHECKSUM = 8
_START = struct.Struct("<4sH")


def write_lowbit(path: Path | str, lowbit: Lowbit) -> None:
    """Write the file whole or not at all; equal content gives equal bytes. The errors are those of ``to_bytes``."""
    write_bytes(path, to_bytes(lowbit))


def read_lowbit(path: Path | str) -> Lowbit:
    """Read and check a file. No more is read or allocated than the file holds, whatever its header promises.

    Raises
    ------
    QuantError
        If it is no such file, of a newer version, truncated, changed or contradicts itself; the text names the file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(_START.size)
            _version(start)  # before a foreign file of any size is read
            return from_bytes(start + file.read())
    except QuantError as error:
        raise QuantError(f"{path}: {error}") from None


def to_bytes(lowbit: Lowbit) -> bytes:
    """The file as bytes.

    Raises
    ------
    QuantError
        If two tensors share a name, or the header is not plain data (see :mod:`quant.cbor`).
    """
    if len({t.name for t in lowbit.tensors}) != len(lowbit.tensors):
        raise QuantError(f"expected unique tensor names, found {[t.name for t in lowbit.tensors]}")
    payload = []
    for part in PARTS:
        own = [t for t in lowbit.tensors if is_head(t.name, lowbit.header) == (part == "head")]
        payload += [
            pack(t.codes.cpu(), t.bits, get(t.quantizer or "", t.bits).levels) for t in own if t.codes is not None
        ]
        payload += [_statistic_bytes(t) for t in own if t.statistics is not None]
        payload += [_value_bytes(t.values) for t in own if t.values is not None]
    header = encode_header(lowbit.header, [t.entry() for t in lowbit.tensors])
    body = b"".join([_START.pack(MAGIC, VERSION), _length_bytes(len(header)), header, *payload])
    return body + checksum(body)


def from_bytes(data: bytes) -> Lowbit:
    """The content of a file of any version up to ours; the errors are those of ``read_lowbit``."""
    if _version(data) == 0:
        return _from_version_0(data)
    header, entries, coded, at = open_header(data)
    tensors: dict[str, LowbitTensor] = {}
    sizes = sections(header, entries, coded)
    for part in PARTS:
        own = [e for e in entries if is_head(e.name, header) == (part == "head")]
        parts = {}
        for kind in ("codes", "statistics", "values"):
            parts[kind] = data[at : at + sizes[part, kind]]
            at += sizes[part, kind]
        tensors |= {t.name: t for t in _decode(own, **parts)}
    return Lowbit(header=header, tensors=[tensors[e.name] for e in entries])


def open_header(data: bytes) -> tuple[dict[str, Any], list[Entry], list[Any], int]:
    """Of a file of version 1: the writer's header, the table, what is coded, and where the sections begin.

    Raises
    ------
    QuantError
        As ``read_lowbit``: the checksum and all sizes are right afterwards.
    """
    body, found = data[:-CHECKSUM], data[-CHECKSUM:]
    if len(data) < _START.size + CHECKSUM or checksum(body) != found:
        raise QuantError(f"expected the checksum of its {len(data)} bytes at their end: truncated or changed")
    length, at = _read_length(body, _START.size)
    if length > len(body) - at:
        raise QuantError(f"expected at least {at + length + CHECKSUM} bytes by the header's length, found {len(data)}")
    header, entries, coded = decode_header(body[at : at + length], len(body) - at - length)
    at += length
    expected = at + sum(sections(header, entries, coded).values()) + CHECKSUM
    if expected != len(data):
        raise QuantError(f"expected {expected} bytes by the header, found {len(data)}: truncated or changed")
    return header, entries, coded, at


def checksum(body: bytes) -> bytes:
    """The last bytes of a file: the first eight of the SHA-256 of all before them."""
    return hashlib.sha256(body).digest()[:CHECKSUM]


def _version(data: bytes) -> int:
    if data[: len(MAGIC)] != MAGIC:
        raise QuantError(f"expected a .lowbit file, which begins with {MAGIC!r}, found {data[: len(MAGIC)]!r}")
    if len(data) < _START.size:
        raise QuantError(f"expected at least {_START.size} bytes, found {len(data)}: truncated")
    version = _START.unpack_from(data)[1]
    if version > VERSION:
        raise QuantError(f"expected version {VERSION} of the format or an earlier one, found {version}")
    return version


def _decode(entries: Sequence[Entry], codes: bytes, statistics: bytes, values: bytes) -> list[LowbitTensor]:
    """The tensors of a part of the file, from the bytes of its three sections.

    Raises
    ------
    QuantError
        If they are not what the quantiser makes; the tensor is named.
    """
    tensors, at_code, at_statistic, at_value = [], 0, 0, 0
    for e in entries:
        try:
            if isinstance(e.storage, str):
                raw = values[at_value : at_value + e.value_bytes]
                tensors.append(LowbitTensor.plain(e.name, _values(raw, e)))
            else:
                name, bits, levels, _ = e.storage
                _check_fit(e)
                dense = unpack(codes[at_code : at_code + e.code_bytes], bits, math.prod(e.codes), levels)
                tensors.append(
                    LowbitTensor(
                        name=e.name,
                        shape=e.shape,
                        bits=bits,
                        quantizer=name,
                        codes=torch.from_numpy(dense).reshape(e.codes),
                        statistics=_statistics(statistics[at_statistic : at_statistic + e.statistic_bytes], e),
                    )
                )
        except QuantError as error:
            raise QuantError(f"tensor {e.name!r}: {error}") from None
        at_code, at_statistic, at_value = (
            at_code + e.code_bytes,
            at_statistic + e.statistic_bytes,
            at_value + e.value_bytes,
        )
    return tensors


def _check_fit(entry: Entry) -> None:
    """Whether the file means by a quantiser's name what we do.

    Raises
    ------
    QuantError
        If it has other levels, statistics or codes.
    """
    assert not isinstance(entry.storage, str)
    name, bits, levels, size = entry.storage
    ours = get(name, bits)
    count = ours.statistics_count(entry.shape)
    known = (ours.levels, 2 if ours.stored == "float16" else 4, count, tuple(ours.codes_shape(entry.shape)))
    if (found := (levels, size, entry.statistics, entry.codes)) != known:
        raise QuantError(
            f"expected of {name} at {bits} bits levels, bytes a statistic, statistics and shape of codes of {known}, "
            f"found {found}"
        )


def _from_version_0(data: bytes) -> Lowbit:
    header, parts = legacy.parse(data)
    tensors = []
    for entry, raw in parts:
        shape, bits, end = tuple(entry["shape"]), entry["bits"], len(raw) - 4 * entry["statistics"]
        try:
            if bits == 32:
                tensors.append(LowbitTensor.plain(entry["name"], _floats(raw, "<f4").reshape(shape)))
                continue
            codes = torch.from_numpy(unpack(raw[:end], bits, math.prod(shape))).reshape(shape)
            quantizer, statistics = entry["quantizer"], _floats(raw[end:], "<f4")
            tensors.append(
                LowbitTensor(
                    name=entry["name"], shape=shape, bits=bits, quantizer=quantizer, codes=codes, statistics=statistics
                )
            )
        except QuantError as error:
            raise QuantError(f"tensor {entry['name']!r}: {error}") from None
    return Lowbit(header=header, tensors=tensors)


def _length_bytes(length: int) -> bytes:
    """LEB128: seven bits a byte, the lowest first, the highest bit set in all bytes but the last."""
    out = bytearray()
    while length > 127:
        out.append(length & 127 | 128)
        length >>= 7
    return bytes([*out, length])


def _read_length(data: bytes, at: int) -> tuple[int, int]:
    length = 0
    for shift in range(0, 35, 7):
        if at == len(data):
            break
        byte, at = data[at], at + 1
        length |= (byte & 127) << shift
        if byte < 128:
            return length, at
    raise QuantError("expected the length of the header in at most 5 bytes, found no end of it")


def _values(raw: bytes, entry: Entry) -> Tensor:
    dtype = DTYPES[str(entry.storage)]
    if dtype == torch.bfloat16:  # numpy has none
        return torch.from_numpy(np.frombuffer(raw, dtype="<i2").astype(np.int16)).view(dtype).reshape(entry.shape)
    return _floats(raw, f"<f{dtype.itemsize}").reshape(entry.shape)


def _statistics(raw: bytes, entry: Entry) -> Tensor:
    return _floats(raw, f"<f{entry.storage[3]}").float()


def _floats(raw: bytes, form: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(raw, dtype=form).astype(form.replace("<", "=")))


def _value_bytes(x: Tensor) -> bytes:
    x = x.detach().cpu().contiguous()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().astype("<i2").tobytes()
    return x.numpy().astype(f"<f{x.dtype.itemsize}").tobytes()


def _statistic_bytes(tensor: LowbitTensor) -> bytes:
    assert tensor.statistics is not None
    half = get(tensor.quantizer or "", tensor.bits).stored == "float16"
    return _value_bytes(tensor.statistics.half() if half else tensor.statistics)
