"""CBOR (RFC 8949) of plain data, in its deterministic encoding: equal data give equal bytes, and only those are read.

Plain data: None, booleans, whole numbers of 64 bits, finite floats, text, bytes, lists, and mappings with keys of text
or whole numbers.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from quant.errors import QuantError

_MOST_DEPTH = 32
_SIMPLE = {20: False, 21: True, 22: None}
_FLOATS = {25: ">e", 26: ">f", 27: ">d"}


def encode(value: Any) -> bytes:
    """The bytes of plain data; a ``QuantError`` if it is none, holds a NaN or an infinity, or is too large or deep."""
    return _encode(value, 0)


def decode(data: bytes) -> Any:
    """The data again. What is allocated is bounded by the length of ``data``.

    Raises
    ------
    QuantError
        If the bytes are not the deterministic encoding of plain data.
    """
    value, end = _decode(data, 0, 0)
    if end != len(data):
        raise QuantError(f"expected the end of the CBOR after {end} bytes, found {len(data) - end} more")
    if encode(value) != data:
        raise QuantError("expected CBOR in its deterministic encoding, found another")
    return value


def count_items(data: bytes, most: int) -> int:
    """How many items the bytes hold, those within others too, or ``most + 1`` of more; allocates nothing."""
    count = at = 0
    while at < len(data) and count <= most:
        major, _, argument, at = _read_head(data, at)
        at += argument if major in (2, 3) else 0
        count += 1
    return count


def _encode(value: Any, depth: int) -> bytes:
    """See ``encode``.

    Raises
    ------
    QuantError
        If it is no plain data.
    """
    if depth > _MOST_DEPTH:
        raise QuantError(f"expected plain data of at most {_MOST_DEPTH} levels, found deeper")
    if value is None or isinstance(value, bool):
        return bytes([0xE0 | {False: 20, True: 21, None: 22}[value]])
    if isinstance(value, int):
        return _head(0, value) if value >= 0 else _head(1, -1 - value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, str):
        try:
            text = value.encode()
        except UnicodeEncodeError:
            raise QuantError(f"expected text that UTF-8 can hold, found {value[:40]!r}") from None
        return _head(3, len(text)) + text
    if isinstance(value, list | tuple):
        return _head(4, len(value)) + b"".join(_encode(x, depth + 1) for x in value)
    if isinstance(value, dict) and all(isinstance(k, str | int) and not isinstance(k, bool) for k in value):
        items = sorted((_encode(k, depth + 1), _encode(v, depth + 1)) for k, v in value.items())
        return _head(5, len(items)) + b"".join(k + v for k, v in items)
    raise QuantError(f"expected plain data, found {type(value).__name__}")


def _head(major: int, argument: int) -> bytes:
    """The first bytes of an item.

    Raises
    ------
    QuantError
        If the argument is beyond 64 bits.
    """
    if argument < 24:
        return bytes([major << 5 | argument])
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << 8 * size:
            return bytes([major << 5 | info]) + argument.to_bytes(size, "big")
    raise QuantError(f"expected whole numbers of at most 64 bits, found one of {argument.bit_length()}")


def _float(value: float) -> bytes:
    """The shortest of half, single and double precision that holds the value.

    Raises
    ------
    QuantError
        If it is not finite.
    """
    if not math.isfinite(value):
        raise QuantError(f"expected finite numbers, found {value}")
    for info, form in [(25, ">e"), (26, ">f")]:
        try:
            data = struct.pack(form, value)
        except OverflowError:
            continue
        if struct.unpack(form, data)[0] == value:
            return bytes([0xE0 | info]) + data
    return bytes([0xE0 | 27]) + struct.pack(">d", value)


def _decode(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """An item that begins at ``at``, and where it ends.

    Raises
    ------
    QuantError
        If it ends too late, or is no plain data.
    """
    major, info, argument, at = _read_head(data, at)
    if major == 7:
        if info in _SIMPLE:
            return _SIMPLE[info], at
        if info in _FLOATS:
            size = struct.calcsize(_FLOATS[info])
            return struct.unpack(_FLOATS[info], data[at - size : at])[0], at
        raise QuantError(f"expected plain data in the CBOR, found the simple value {info}")
    if major <= 1:
        return (argument, -1 - argument)[major], at
    if argument > len(data) - at or depth > _MOST_DEPTH:
        raise QuantError("the CBOR ends within an item, or is too deep")
    if major in (2, 3):
        part = data[at : at + argument]
        try:
            return (part if major == 2 else part.decode()), at + argument
        except UnicodeDecodeError:
            raise QuantError("expected text in UTF-8 in the CBOR, found other bytes") from None
    if major == 6:
        raise QuantError("expected plain data in the CBOR, found a tag")
    items = []
    for _ in range(argument * (major - 3)):
        item, at = _decode(data, at, depth + 1)
        items.append(item)
    if major == 4:
        return items, at
    try:
        return dict(zip(items[::2], items[1::2], strict=True)), at
    except TypeError:
        raise QuantError("expected keys of text or whole numbers in the CBOR, found others") from None


def _read_head(data: bytes, at: int) -> tuple[int, int, int, int]:
    """Major type, additional information, argument, and where the next byte lies.

    Raises
    ------
    QuantError
        If the data end before.
    """
    if at >= len(data):
        raise QuantError("the CBOR ends within an item")
    major, info = data[at] >> 5, data[at] & 31
    if info < 24:
        return major, info, info, at + 1
    size = 1 << (info - 24)
    if info > 27 or at + 1 + size > len(data):
        raise QuantError("the CBOR ends within an item, or has one of unknown length")
    return major, info, int.from_bytes(data[at + 1 : at + 1 + size], "big"), at + 1 + size
