"""Packed bits against one large integer written in little-endian bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import quant.pack
from quant.errors import QuantError
from quant.pack import pack, packed_bytes, unpack


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


@pytest.mark.parametrize("bits", range(1, 9))
def test_chunks_meet(bits, monkeypatch):
    codes = np.random.default_rng(0).integers(0, 2**bits, 75, dtype=np.uint8)
    whole = pack(codes, bits)
    monkeypatch.setattr(quant.pack, "_CHUNK", 16)
    assert pack(codes, bits) == whole
    np.testing.assert_array_equal(unpack(whole, bits, 75), codes)


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
    with pytest.raises(QuantError, match="found -8"):
        unpack(b"\0", -8, 1)
    with pytest.raises(QuantError, match="codes of 8 bits"):
        unpack(b"", 8, -1)
