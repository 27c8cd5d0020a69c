"""Packed codes against Python's whole numbers: of each group, or of the whole stream at powers of two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import quant.pack
from quant.errors import QuantError
from quant.pack import group, most_codes, pack, packed_bytes, unpack


@st.composite
def coded(draw):
    bits = draw(st.integers(1, 8))
    return bits, np.array(draw(st.lists(st.integers(0, 2**bits - 1), max_size=80)), dtype=np.uint8)


@given(coded())
def test_packs_densely_first_code_lowest(case):
    bits, codes = case
    number = sum(int(c) << (i * bits) for i, c in enumerate(codes))
    assert pack(codes, bits) == number.to_bytes((len(codes) * bits + 7) // 8, "little")


@given(coded())
def test_unpack_is_the_inverse(case):
    bits, codes = case
    data = pack(codes, bits)
    assert len(data) == packed_bytes(codes.size, bits)
    back = unpack(data, bits, codes.size)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, codes)


@st.composite
def in_any_base(draw):
    levels = draw(st.integers(2, 256))
    return levels, np.array(draw(st.lists(st.integers(0, levels - 1), max_size=150)), dtype=np.uint8)


@given(in_any_base())
def test_packs_in_any_base_group_by_group(case):
    levels, codes = case
    bits = (levels - 1).bit_length()
    count, size = group(levels)
    expected = b""
    for part in (codes[at : at + count] for at in range(0, len(codes), count)):
        number = sum(int(c) * levels**i for i, c in enumerate(part))
        short = next(m for m in range(9) if 256**m >= levels ** len(part))
        expected += number.to_bytes(size if len(part) == count else short, "little")
    assert pack(codes, bits, levels) == expected
    assert len(expected) == packed_bytes(codes.size, bits, levels)
    np.testing.assert_array_equal(unpack(expected, bits, codes.size, levels), codes)


def test_the_groups_are_the_densest_of_at_most_eight_bytes():
    assert (group(2), group(3), group(8), group(256)) == ((8, 1), (5, 1), (8, 3), (1, 1))
    for levels in range(2, 257):
        count, size = group(levels)
        assert levels**count <= 256**size < levels ** (count + 1)
        for m in range(1, 9):
            worse = m * count - size * most_codes(levels, m)
            assert worse > 0 or (worse == 0 and m >= size)


def test_a_trit_takes_a_fifth_of_a_byte():
    codes = np.array([2, 1, 0, 0, 2, 1, 2], dtype=np.uint8)
    assert pack(codes, 2, 3) == bytes([2 + 1 * 3 + 2 * 81, 1 + 2 * 3])
    assert packed_bytes(5_000_000, 2, 3) == 1_000_000


@pytest.mark.parametrize("levels", [2, 3, 4, 7, 8, 16, 32, 100, 128, 256])
def test_chunks_meet(levels, monkeypatch):
    bits = (levels - 1).bit_length()
    codes = np.random.default_rng(0).integers(0, levels, 75, dtype=np.uint8)
    whole = pack(codes, bits, levels)
    monkeypatch.setattr(quant.pack, "_CHUNK", 40)
    assert pack(codes, bits, levels) == whole
    np.testing.assert_array_equal(unpack(whole, bits, 75, levels), codes)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_papers_digits(bits):
    """PAPER 1.4: element i is the base-2^b digit i mod (8 / b) of its byte."""
    per = 8 // bits
    codes = np.random.default_rng(1).integers(0, 2**bits, 3 * per, dtype=np.uint8)
    expected = bytes(sum(int(codes[k * per + i]) * 2 ** (bits * i) for i in range(per)) for k in range(3))
    assert pack(codes, bits) == expected


def test_the_last_partial_byte_is_written():
    assert pack(np.array([1, 0, 1], dtype=np.uint8), 1) == b"\x05"
    assert pack(torch.tensor([[3, 1], [2, 3]], dtype=torch.uint8), 3) == (3 | 1 << 3 | 2 << 6 | 3 << 9).to_bytes(
        2, "little"
    )


def test_defects_are_refused():
    with pytest.raises(QuantError, match=r"below 4 .2 bits., found 4"):
        pack(np.array([0, 4], dtype=np.uint8), 2)
    with pytest.raises(QuantError, match="uint8, found int64"):
        pack(np.array([0, 1]), 2)
    with pytest.raises(QuantError, match="expected 2 bytes for 3 codes of 4 bits, found 1"):
        unpack(b"\0", 4, 3)
    with pytest.raises(QuantError, match="expected zeros after the last"):
        unpack(b"\xf0", 4, 1)
    with pytest.raises(QuantError, match="expected zeros after the last"):
        unpack(b"\x08", 1, 3)
    for data, count in ((bytes([243]), 5), (bytes([9]), 2)):
        with pytest.raises(QuantError, match="no number beyond codes below 3"):
            unpack(data, 2, count, 3)
    with pytest.raises(QuantError, match=r"expected codes below 3 .2 bits., found 3"):
        pack(np.array([3], dtype=np.uint8), 2, 3)
    for levels in (0, 1, 5):
        with pytest.raises(QuantError, match=f"expected 2 to 4 levels at 2 bits, found {levels}"):
            pack(np.array([0], dtype=np.uint8), 2, levels)
    with pytest.raises(QuantError, match="found -8"):
        unpack(b"\0", -8, 1)
    with pytest.raises(QuantError, match="codes of 8 bits"):
        unpack(b"", 8, -1)
