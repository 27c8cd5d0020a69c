"""Codes as dense bytes, the first code in the lowest digits (PAPER 1.4), for any number of levels from 2 to 256.

A group of k codes below L is one number in base L, the first code its lowest digit, written little-endian in m bytes.
Of all m up to 8 and the largest k with L^k <= 256^m, the pair with the fewest bytes a code is taken, of equal ones the
smallest: 8 / 1 at 2 levels, 5 / 1 at 3 (ternary), 8 / 3 at 8. The last group, of fewer codes, takes the fewest bytes
that hold it. Where L is a power of two this is one stream of bits, the bytes of the paper's files at 1, 2, 4 and 8.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from quant.codebooks import check_bits
from quant.errors import QuantError

_CHUNK = 1 << 20  # codes expanded at a time, rounded down to whole groups


@lru_cache
def group(levels: int) -> tuple[int, int]:
    """The codes in a group and the bytes that it takes, at that many levels (2 to 256)."""
    best = (1, 1)
    for size in range(1, 9):
        count = most_codes(levels, size)
        if size * best[0] < best[1] * count:
            best = (count, size)
    return best


def most_codes(levels: int, size: int) -> int:
    """The most codes below ``levels`` that ``size`` bytes can hold: the largest k with L^k <= 256^m."""
    count = 0
    while levels ** (count + 1) <= 256**size:
        count += 1
    return count


def packed_bytes(count: int, bits: int, levels: int | None = None) -> int:
    """Bytes that ``count`` codes take: of ``bits`` bits, or below ``levels`` where these are fewer than 2^bits."""
    codes, size = group(levels or 1 << bits)
    whole, rest = divmod(count, codes)
    return whole * size + _least_bytes(levels or 1 << bits, rest)


def pack(codes: Any, bits: int, levels: int | None = None) -> bytes:
    """Pack codes (uint8, array or CPU tensor of any shape, row-major); unused digits at the end are zeros.

    ``levels``: how many codes exist, 2^bits if left out.

    Raises
    ------
    QuantError
        If the codes are not uint8, or one is none of the levels.
    """
    levels = _check(bits, levels)
    flat = np.ascontiguousarray(codes).reshape(-1)
    if flat.dtype != np.uint8:
        raise QuantError(f"expected codes of type uint8, found {flat.dtype}")
    if levels < 256 and flat.size and (top := int(flat.max())) >= levels:
        raise QuantError(f"expected codes below {levels} ({bits} bits), found {top}")
    if levels == 256:
        return flat.tobytes()
    if levels == 2:
        return np.packbits(flat, bitorder="little").tobytes()
    count, size = group(levels)
    step = _CHUNK // count * count
    return b"".join(_pack(flat[at : at + step], levels, count, size) for at in range(0, flat.size, step))


def unpack(data: bytes, bits: int, count: int, levels: int | None = None) -> np.ndarray:
    """The ``count`` codes in ``data``: uint8 (count,).

    Raises
    ------
    QuantError
        If the length of the data is not that of so many codes, or the bytes hold a number beyond their codes.
    """
    levels = _check(bits, levels)
    if count < 0 or len(data) != packed_bytes(count, bits, levels):
        expected = packed_bytes(max(count, 0), bits, levels)
        raise QuantError(f"expected {expected} bytes for {count} codes of {bits} bits, found {len(data)}")
    raw = np.frombuffer(data, dtype=np.uint8)
    if levels == 256:
        return raw.copy()
    if levels == 2:
        if count % 8 and raw[-1] >> count % 8:
            raise QuantError(_beyond(count, levels))
        return np.unpackbits(raw, count=count, bitorder="little")
    digits, size = group(levels)
    step = _CHUNK // digits * digits
    codes = np.empty(count, dtype=np.uint8)
    for at in range(0, count, step):
        chunk = raw[at // digits * size : at // digits * size + step // digits * size]
        part = _unpack(chunk, levels, digits, size)
        if part[count - at :].any():
            raise QuantError(_beyond(count, levels))
        codes[at : at + step] = part[: count - at]
    return codes


def _pack(codes: np.ndarray, levels: int, count: int, size: int) -> bytes:
    """Whole groups, and at the end perhaps a smaller one."""
    groups = -(-codes.size // count)
    digits = np.zeros((groups, count), dtype=np.uint8)
    digits.reshape(-1)[: codes.size] = codes
    numbers = np.zeros(groups, dtype="<u8")
    for i in reversed(range(count)):  # Horner: the first code is the lowest digit
        numbers *= np.uint64(levels)
        numbers += digits[:, i]
    data = numbers.view(np.uint8).reshape(groups, 8)[:, :size].tobytes()
    rest = codes.size % count
    return data[: len(data) - size + _least_bytes(levels, rest)] if rest else data


def _unpack(data: np.ndarray, levels: int, count: int, size: int) -> np.ndarray:
    """The codes of whole groups, the last one filled up with zero bytes.

    Raises
    ------
    QuantError
        If a group holds a number that its codes cannot make.
    """
    groups = -(-data.size // size)
    filled = np.zeros(groups * size, dtype=np.uint8)
    filled[: data.size] = data
    wide = np.zeros((groups, 8), dtype=np.uint8)
    wide[:, :size] = filled.reshape(groups, size)
    numbers = wide.reshape(-1).view("<u8")
    digits = np.empty((groups, count), dtype=np.uint8)
    for i in range(count):
        if levels & (levels - 1):
            numbers, digit = np.divmod(numbers, np.uint64(levels))
        else:
            digit, numbers = numbers & np.uint64(levels - 1), numbers >> np.uint64(levels.bit_length() - 1)
        digits[:, i] = digit
    if numbers.any():
        raise QuantError(_beyond(groups * count, levels))
    return digits.reshape(-1)


def _least_bytes(levels: int, count: int) -> int:
    """The fewest bytes that hold ``count`` codes: the smallest m with L^k <= 256^m."""
    return ((levels**count - 1).bit_length() + 7) // 8


def _check(bits: int, levels: int | None) -> int:
    check_bits(bits)
    if levels is not None and not 2 <= levels <= 1 << bits:
        raise QuantError(f"expected 2 to {1 << bits} levels at {bits} bits, found {levels}")
    return levels or 1 << bits


def _beyond(count: int, levels: int) -> str:
    return f"expected zeros after the last of {count} codes, and no number beyond codes below {levels}"
