"""Codes as dense bits: 1 to 8 bits a code with nothing in between, the first code in the lowest bits (PAPER 1.4).

The codes form one stream of bits, each code's lowest bit first; bytes are filled from their lowest bit. At 1, 2, 4 and
8 bits these are the bytes of the paper's files; at 3, 5, 6 and 7 a code may straddle two bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.codebooks import check_bits
from quant.errors import QuantError

_CHUNK = (
    1 << 20
)  # codes expanded to single bits at a time; a multiple of 8, so every chunk but the last ends on a whole byte


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take."""
    return (count * bits + 7) // 8


def pack(codes: Any, bits: int) -> bytes:
    """Pack codes (uint8, array or CPU tensor of any shape, row-major); the last byte is filled with zeros.

    Raises
    ------
    QuantError
        If the codes are not uint8, or one does not fit into the bits.
    """
    check_bits(bits)
    flat = np.ascontiguousarray(codes).reshape(-1)
    if flat.dtype != np.uint8:
        raise QuantError(f"expected codes of type uint8, found {flat.dtype}")
    if flat.size and (top := int(flat.max())) >> bits:
        raise QuantError(f"expected codes below {1 << bits} ({bits} bits), found {top}")
    if bits == 8:
        return flat.tobytes()
    parts = []
    for start in range(0, flat.size, _CHUNK):
        single = np.unpackbits(flat[start : start + _CHUNK, None], axis=1, count=bits, bitorder="little")
        parts.append(np.packbits(single, bitorder="little").tobytes())
    return b"".join(parts)


def unpack(data: bytes, bits: int, count: int) -> np.ndarray:
    """The ``count`` codes in ``data``: uint8 (count,).

    Raises
    ------
    QuantError
        If the length of the data is not that of so many codes, or the bits that fill the last byte are not zero.
    """
    check_bits(bits)
    if count < 0 or len(data) != packed_bytes(count, bits):
        raise QuantError(
            f"expected {packed_bytes(count, bits)} bytes for {count} codes of {bits} bits, found {len(data)}"
        )
    raw = np.frombuffer(data, dtype=np.uint8)
    used = count * bits % 8
    if used and raw[-1] >> used:
        raise QuantError(
            f"expected zeros after the last of {count} codes of {bits} bits, found {int(raw[-1]) >> used:#b}"
        )
    if bits == 8:
        return raw.copy()
    codes = np.empty(count, dtype=np.uint8)
    for start in range(0, count, _CHUNK):
        n = min(_CHUNK, count - start)
        chunk = raw[start * bits // 8 : packed_bytes(start + n, bits)]
        single = np.unpackbits(chunk, count=n * bits, bitorder="little").reshape(n, bits)
        codes[start : start + n] = np.packbits(single, axis=1, bitorder="little")[:, 0]
    return codes
