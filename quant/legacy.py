"""Version 0 of the .lowbit container, which earlier runs were written in; it is only read.

Layout (little-endian): magic ``LOWB``; u16 version; u32 length of the header; the header, JSON in UTF-8, with
``header`` (the writer's own) and ``tensors`` (name, shape, bits, quantizer, statistics: their count); the payload,
tensor after tensor: packed codes then float32 statistics, or float32 values (32 bits); SHA-256 of all before it.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import Any

from quant.errors import QuantError
from quant.pack import packed_bytes

_PREFIX = struct.Struct("<4sHI")
_DIGEST = hashlib.sha256().digest_size
_MAX_DIMS = 8


def parse(data: bytes) -> tuple[dict[str, Any], list[tuple[dict[str, Any], bytes]]]:
    """The writer's header, and of each tensor its entry and its bytes.

    Raises
    ------
    QuantError
        If the file is truncated, changed or contradicts itself.
    """
    if len(data) < _PREFIX.size:
        raise QuantError(f"expected at least {_PREFIX.size} bytes, found {len(data)}: truncated")
    length = _PREFIX.unpack_from(data)[2]
    if (least := _PREFIX.size + length + _DIGEST) > len(data):
        raise QuantError(f"expected at least {least} bytes by the length of the header, found {len(data)}: truncated")
    header, entries = _header(data[_PREFIX.size : _PREFIX.size + length])
    sizes = [_nbytes(e) for e in entries]
    if least + sum(sizes) != len(data):
        raise QuantError(f"expected {least + sum(sizes)} bytes by the header, found {len(data)}: truncated or changed")
    if hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise QuantError("expected the SHA-256 at the end of the file, found another: the content was changed")
    tensors, at = [], _PREFIX.size + length
    for entry, size in zip(entries, sizes, strict=True):
        tensors.append((entry, data[at : at + size]))
        at += size
    return header, tensors


def _header(text: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
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
        if not low and e["statistics"]:
            raise QuantError(f"{name}: expected no statistics at 32 bits")
        seen.add(name)
    return header, entries


def _nbytes(entry: dict[str, Any]) -> int:
    count, bits = math.prod(entry["shape"]), entry["bits"]
    return (4 * count if bits == 32 else packed_bytes(count, bits)) + 4 * entry["statistics"]


def _is_int(x: object, low: int, high: int) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and low <= x <= high
