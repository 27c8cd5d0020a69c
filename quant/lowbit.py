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

from figures.atomic import write_bytes
from quant import legacy
from quant.content import Lowbit, LowbitTensor
from quant.errors import QuantError
from quant.header import PARTS, Entry, decode_header, encode_header, is_head, sections
from quant.pack import unpack
from quant.sections import DENSE, decode_part, encode_part

if TYPE_CHECKING:
    pass

__all__ = ["Lowbit", "LowbitTensor", "from_bytes", "read_lowbit", "to_bytes", "write_lowbit"]

MAGIC, VERSION = b"LOWB", 1
CHECKSUM = 8
_START = struct.Struct("<4sH")


def write_lowbit(path: Path | str, lowbit: Lowbit, *, streams: bool = True) -> None:
    """Write the file whole or not at all; equal content gives equal bytes. Options and errors are ``to_bytes``'s."""
    write_bytes(path, to_bytes(lowbit, streams=streams))


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


def to_bytes(lowbit: Lowbit, *, streams: bool = True) -> bytes:
    """The file as bytes.

    ``streams``: entropy-code codes where that makes the file smaller; it takes about 20 s a megabyte.

    Raises
    ------
    QuantError
        If two tensors share a name, or the header is not plain data (see :mod:`quant.cbor`).
    """
    if len({t.name for t in lowbit.tensors}) != len(lowbit.tensors):
        raise QuantError(f"expected unique tensor names, found {[t.name for t in lowbit.tensors]}")
    parts = [
        encode_part([t for t in lowbit.tensors if is_head(t.name, lowbit.header) == (part == "head")], streams=streams)
        for part in PARTS
    ]
    coded = [coded for coded, _ in parts] if any(coded for coded, _ in parts) else []
    header = encode_header(lowbit.header, [t.entry() for t in lowbit.tensors], coded)
    payload = [data for _, data in parts]
    body = b"".join([_START.pack(MAGIC, VERSION), _length_bytes(len(header)), header, *payload])
    return body + checksum(body)


def from_bytes(data: bytes) -> Lowbit:
    """The content of a file of any version up to ours; the errors are those of ``read_lowbit``."""
    if _version(data) == 0:
        return _from_version_0(data)
    header, entries, coded, at = open_header(data)
    tensors: dict[str, LowbitTensor] = {}
    sizes = sections(header, entries, coded)
    for i, part in enumerate(PARTS):
        own = [e for e in entries if is_head(e.name, header) == (part == "head")]
        parts = {}
        for kind in ("codes", "statistics", "values"):
            parts[kind] = data[at : at + sizes[part, kind]]
            at += sizes[part, kind]
        tensors |= {t.name: t for t in decode_part(own, coded[i] if coded else DENSE, **parts)}
    return Lowbit(header=header, tensors=[tensors[e.name] for e in entries])


def part_bytes(path: Path | str) -> dict[str, int]:
    """Bytes of adapter and head on disk, header and checksum left out; the errors are those of ``read_lowbit``."""
    data = Path(path).read_bytes()
    if _version(data) == 0:
        lowbit = _from_version_0(data)
        sizes = lowbit.sizes()
        head = sum(size for name, size in sizes.items() if is_head(name, lowbit.header))
        return {"adapter": sum(sizes.values()) - head, "head": head}
    header, entries, coded, _ = open_header(data)
    by_section = sections(header, entries, coded)
    return {part: sum(size for (of, _), size in by_section.items() if of == part) for part in PARTS}


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


def _from_version_0(data: bytes) -> Lowbit:
    header, parts = legacy.parse(data)
    tensors = []
    for entry, raw in parts:
        shape, bits, end = tuple(entry["shape"]), entry["bits"], len(raw) - 4 * entry["statistics"]
        try:
            if bits == 32:
                tensors.append(LowbitTensor.plain(entry["name"], _floats(raw).reshape(shape)))
                continue
            codes = torch.from_numpy(unpack(raw[:end], bits, math.prod(shape))).reshape(shape)
            quantizer, statistics = entry["quantizer"], _floats(raw[end:])
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


def _floats(raw: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(raw, dtype="<f4").astype(np.float32))
