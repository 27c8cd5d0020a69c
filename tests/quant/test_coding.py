"""The second stage: exact in both directions, near the entropy where it is known, and deaf to damaged streams."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant.coding import decode, encode
from quant.errors import QuantError
from quant.pack import packed_bytes

FAST = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def packed(shapes, levels):
    return sum(packed_bytes(math.prod(s), (k - 1).bit_length(), k) for s, k in zip(shapes, levels, strict=True))


def there_and_back(matrices, levels):
    data = encode(matrices, levels)
    shapes = [m.shape for m in matrices]
    for before, after in zip(matrices, decode(data, shapes, levels), strict=True):
        assert after.dtype == np.uint8
        np.testing.assert_array_equal(before, after)
    assert len(data) <= packed(shapes, levels) + 1
    return data


@st.composite
def files(draw):
    """A few matrices of any shape; codes of one value, random, or units that copy one another."""
    levels = st.one_of(st.just(2), st.integers(2, 256))
    units, positions = draw(st.integers(1, 12)), draw(st.integers(1, 90))
    shape = st.one_of(
        st.sampled_from([(units, positions), (positions, units)]), st.tuples(st.integers(0, 20), st.integers(0, 20))
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    matrices, counts = [], []
    for _ in range(draw(st.integers(0, 6))):
        k, size, kind = draw(levels), draw(shape), draw(st.sampled_from(["random", "equal", "copies"]))
        m = rng.integers(0, k, size)
        if kind == "equal":
            m[...] = k - 1
        elif kind == "copies" and m.size:
            m[:] = np.where(rng.random(size) < 0.9, m[:1], m)
        matrices.append(m.astype(np.uint8))
        counts.append(k)
    return matrices, counts


@FAST
@given(files())
def test_decode_is_the_inverse(case):
    there_and_back(*case)


def adapters(blocks, units, positions, factors, seed=0):
    """Down and up matrices of 1 bit: signs of noise and a few common factors; the units share the factors' weights."""
    rng = np.random.default_rng(seed)
    matrices = []
    for _ in range(blocks):
        weights = rng.standard_normal((units, factors))
        for transposed in (False, True):
            z = weights @ rng.standard_normal((factors, positions)) + rng.standard_normal((units, positions)) / 2
            matrices.append(((z > 0).T if transposed else z > 0).astype(np.uint8))
    return matrices


def test_pairs_of_many_blocks_and_a_head():
    matrices = [*adapters(5, 9, 400, 2), np.random.default_rng(1).integers(0, 2, (5, 400)).astype(np.uint8)]
    data = there_and_back(matrices, [2] * 11)
    assert len(data) < 0.9 * packed([m.shape for m in matrices], [2] * 11)


@pytest.mark.parametrize("flip", [0.05, 0.2])
def test_copies_with_flips_cost_their_entropy(flip):
    """Unit u is unit u - 1 with bits flipped at random: 1 bit a bit of the first unit, H(flip) of the others."""
    rng = np.random.default_rng(0)
    x = np.cumsum(np.vstack([rng.integers(0, 2, (1, 4000)), rng.random((15, 4000)) < flip]), axis=0) % 2
    entropy = -flip * math.log2(flip) - (1 - flip) * math.log2(1 - flip)
    bits = 4000 * (1 + 15 * entropy)
    size = 8 * len(there_and_back([x.astype(np.uint8)], [2]))
    # Rissanen: a parameter learned from n observations costs (log2 n) / 2 bits; unit u has u + 1 of them
    assert bits * 0.97 < size < bits + 0.6 * math.log2(4000) * sum(u + 1 for u in range(16))


def test_the_up_matrix_profits_from_the_down_matrix():
    down, up = adapters(1, 24, 200, 3)
    both = len(there_and_back([down, up], [2, 2]))
    alone = sum(len(there_and_back([m], [2])) for m in (down, up))
    assert both < 0.97 * alone


def test_tiles_profit_from_the_tile_before():
    rng = np.random.default_rng(0)
    common = rng.standard_normal((2, 600))
    matrices = [
        (rng.standard_normal((8, 2)) @ common + rng.standard_normal((8, 600)) > 0).astype(np.uint8) for _ in range(6)
    ]
    together = len(there_and_back(matrices, [2] * 6))
    assert together < 0.9 * sum(len(there_and_back([m], [2])) for m in matrices)


@pytest.mark.parametrize("shape", [(12, 800), (1, 5000), (200, 300), (700, 4)])
def test_random_bits_cost_at_most_16_bytes(shape):
    x = np.random.default_rng(0).integers(0, 2, shape).astype(np.uint8)
    assert len(there_and_back([x], [2])) <= math.ceil(x.size / 8) + 16


@pytest.mark.parametrize("levels", [3, 4, 5, 6, 16, 256])
def test_levels_cost_at_most_their_entropy_and_the_counts(levels):
    """Codes of a normal distribution: order-0 entropy, and log2(n) / 2 bits a level to learn it, twice for safety."""
    rng = np.random.default_rng(0)
    x = np.clip(np.round((rng.standard_normal((16, 1500)) / 3 + 1) / 2 * (levels - 1)), 0, levels - 1).astype(np.uint8)
    p = np.bincount(x.reshape(-1), minlength=levels) / x.size
    entropy = -float((p[p > 0] * np.log2(p[p > 0])).sum())
    assert 8 * len(there_and_back([x], [levels])) < 1.01 * x.size * entropy + levels * math.log2(x.size) + 128


def test_large_matrices_are_cut():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((1, 200)) + rng.standard_normal((340, 200)) > 0).astype(np.uint8)
    assert len(there_and_back([x], [2])) < 0.95 * x.size / 8


def test_damage_is_found():
    matrices, levels = [*adapters(2, 8, 60, 2), np.arange(60, dtype=np.uint8).reshape(3, 20) % 6], [2] * 4 + [6]
    data, shapes = encode(matrices, levels), [m.shape for m in matrices]
    assert data[0] == 1
    for end in range(0, len(data), 7):
        with pytest.raises(QuantError):
            decode(data[:end], shapes, levels)
    with pytest.raises(QuantError):
        decode(data + b"\0\0", shapes, levels)
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(data), 20):
        damaged = bytearray(data)
        damaged[at] ^= 1 << rng.integers(0, 8)
        try:
            found = decode(bytes(damaged), shapes, levels)
        except QuantError:
            continue
        # a setting that this stream does not use
        assert all(np.array_equal(a, b) for a, b in zip(found, matrices, strict=True))
    with pytest.raises(QuantError):
        decode(data, [(8, 61), *shapes[1:]], levels)
    for noise in range(10):
        with pytest.raises(QuantError):
            decode(b"\1" + np.random.default_rng(noise).bytes(50), shapes, levels)


def test_damage_of_packed_codes_is_found():
    x = np.random.default_rng(0).integers(0, 2, (1, 100)).astype(np.uint8)
    data = encode([x], [2])
    assert data[0] == 0
    for wrong in (data[:-1], data + b"\0", b"", b"\2" + data[1:], data[:-1] + b"\xff"):
        with pytest.raises(QuantError):
            decode(wrong, [x.shape], [2])


def test_defects_are_refused():
    x = np.zeros((3, 4), dtype=np.uint8)
    with pytest.raises(QuantError, match="two axes"):
        encode([x[0]], [2])
    with pytest.raises(QuantError, match="uint8, found int64"):
        encode([x.astype(np.int64)], [2])
    with pytest.raises(QuantError, match="below 3"):
        encode([x + 3], [3])
    with pytest.raises(QuantError, match="2 to 256 levels, found 257"):
        encode([x], [257])
    with pytest.raises(QuantError, match="found 2 and 1"):
        encode([x], [2, 2])


def petl_codes(path, blocks=12, width=768):
    """The codes of one of the paper's 1-bit files (PAPER 1.4), by its folder and its size alone: adapter, head."""
    lora, classes = "lora" in path.parent.name, 100 if "cifar" in path.name else 16
    dim = int(path.stem.rpartition("dim")[2])
    data, at, matrices = path.read_bytes(), 0, []
    for shape in [(dim, width), (width, dim)] * (2 * blocks if lora else blocks) + [(classes, width)]:
        size = shape[0] * shape[1] // 8
        bits = np.unpackbits(np.frombuffer(data[at : at + size], dtype=np.uint8), bitorder="little")
        matrices.append(bits.reshape(shape))
        at += size + 8
        if len(matrices) == blocks * (4 if lora else 2) and "bihead" not in path.parent.name:
            return matrices, []
    return matrices[:-1], matrices[-1:]


def ratio(matrices):
    return len(encode(matrices, [2] * len(matrices))) / (sum(m.size for m in matrices) / 8)


@pytest.mark.parametrize(("method", "most"), [("adaptformer", 0.57), ("lora", 0.34)])
def test_the_releases_adapters_shrink(shared, method, most):
    """Issue 12: means of 0.57 and 0.34 of the packed codes over the two tasks."""
    files = [shared / "petl_bin" / "models_bin" / method / f"{t}-bit1-dim32.bin" for t in ("cifar", "dsprites_ori")]
    assert np.mean([ratio(petl_codes(f)[0]) for f in files]) <= most


@pytest.mark.slow
def test_every_released_file_comes_back(shared):
    files = sorted((shared / "petl_bin" / "models_bin").glob("*/*.bin"))
    assert len(files) == 16
    for file in files:
        for matrices in petl_codes(file):
            there_and_back(matrices, [2] * len(matrices))
