"""The second stage's arithmetic, read off docs/coding.md and written out with Python's integers, one number at a time.

No numpy, no float, no table of the package: a reader that gives back what ``encode`` wrote has computed every chance
of every bit alike, for one wrong by 2^-16 derails the rest of the stream.
"""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal, getcontext
from itertools import pairwise

import numpy as np
import pytest

from quant import _units, coding
from quant._units import Units, code_tiles

getcontext().prec = 50
REACH = 1536
ENDS = [0, 2, 6, 12, 20, 32, 48, 64, 96, 128, 192, 256]


def chance(i):
    return min(max(round(65536 / (1 + (Decimal(-i) / 128).exp())), 2), 65534)


CHANCE = {i: chance(i) for i in range(-REACH, REACH + 1)}


def nearest(z, bits):
    """A logit in units of 2^-bits as a multiple of 2^-7, half up."""
    return min(max((2 * z + (1 << bits - 7)) // (1 << bits - 6), -REACH), REACH)


def variance(i):
    return CHANCE[i] * (65536 - CHANCE[i]) // 65536


class SlowReader:
    def __init__(self, data):
        self.state = int.from_bytes(data[:6], "little")
        self.words = [int.from_bytes(data[i : i + 2], "little") for i in range(6, len(data), 2)]

    def bit(self, one):
        whole, slot = divmod(self.state, 65536)
        bit = slot < one
        self.state = whole * one + slot if bit else whole * (65536 - one) + slot - one
        if self.state < 2**32:
            self.state = self.state * 65536 + self.words.pop(0)
        return int(bit)

    def symbol(self, slots):
        whole, slot = divmod(self.state, 65536)
        symbol = next(i for i in range(len(slots)) if slot < sum(slots[: i + 1]))
        self.state = slots[symbol] * whole + slot - sum(slots[:symbol])
        if self.state < 2**32:
            self.state = self.state * 65536 + self.words.pop(0)
        return symbol


class SlowUnit:
    """One unit's regression."""

    def __init__(self, penalties):
        self.start = [256 * v for v in penalties]
        self.diagonal = list(self.start)
        self.w, self.r = [0] * len(penalties), [0] * len(penalties)

    def lend(self):
        self.w[0], self.r = 0, [0] * len(self.w)

    def logit(self, f):
        return sum(a * b for a, b in zip(self.w, f, strict=True))

    def add(self, f, bit, i):
        for a, fa in enumerate(f):
            self.r[a] += fa * (65536 * bit - CHANCE[i])

    def step(self, h):
        e = max(max(abs(v) for v in self.r).bit_length() - 18, 0)
        r = [v // 2**e for v in self.r]
        d, total, norm = list(r), [0] * len(r), sum(v * v for v in r)

        def bounded(v):
            return min(max(v, 1 - 2**18), 2**18 - 1)

        for k in range(3):
            q = [(sum(h[i][j] * v for j, v in enumerate(d)) + m * d[i]) // 256 for i, m in enumerate(self.diagonal)]
            alpha = min(norm * 2**18 // max(sum(a * b for a, b in zip(d, q, strict=True)), 1), 2**18)
            total = [t + alpha * v // 2**18 for t, v in zip(total, d, strict=True)]
            r = [bounded(v - alpha * u // 2**18) for v, u in zip(r, q, strict=True)]
            if k < 2:
                left = sum(v * v for v in r)
                beta = min(left * 4096 // max(norm, 1), 4 * 4096)
                d, norm = [bounded(v + beta * u // 4096) for v, u in zip(r, d, strict=True)], left
        self.r = [v * 2**e for v in r]
        self.w = [min(max(w + t * 2**e, 1 - 2**20), 2**20 - 1) for w, t in zip(self.w, total, strict=True)]

    def loosen(self):
        for i in range(1, len(self.w)):
            wanted = self.start[i] * 2**17 // (65536 + self.w[i] ** 2 // 65536 * (self.start[i] // 256))
            change = wanted - self.diagonal[i]
            self.diagonal[i] = wanted
            self.r[i] -= change * self.w[i] // 256


def slow_tiles(reader, regressions, curvatures, positions, before, sparse, sees=True):
    """The bits of some tiles [tile][unit][position]; ``before``: pairs of a lag and a number of units."""
    found = [[[0] * positions for _ in models] for models in regressions]
    ends = [e for e in ENDS if e < positions] + list(range(320, positions, 64)) + [positions]
    factor, memory = 4096, 0

    def features(tile, unit, t):
        f = [1]
        for lag, number in before:
            f += [2 * found[tile - lag][j][t] - 1 if sees and tile >= lag else 0 for j in range(number)]
        return f + [2 * found[tile][j][t] - 1 for j in range(unit)]

    for start, stop in pairwise(ends):
        slope = bend = 0
        for tile, models in enumerate(regressions):
            sums = {t: [2560, 2560] for t in range(start, stop)}
            for unit, model in enumerate(models):
                for t in range(start, stop):
                    f = features(tile, unit, t)
                    z = model.logit(f)
                    below, above = sums[t]
                    i = nearest(z * min(max(above * factor // below, factor // 4), factor * 2), 28)
                    bit = found[tile][unit][t] = reader.bit(CHANCE[i])
                    slope += i * (65536 * bit - CHANCE[i])
                    bend += variance(i) * i * i // 128
                    i = nearest(z, 16)
                    known = variance(i) * i // 32768 * i // 128
                    sums[t][0] += known
                    sums[t][1] += known - i * CHANCE[i] // 32768 + 2 * i * bit
        for tile, (models, h) in enumerate(zip(regressions, curvatures, strict=True)):
            for t in range(start, stop):
                f = features(tile, len(models) - 1, t)
                logits = [nearest(model.logit(features(tile, unit, t)), 16) for unit, model in enumerate(models)]
                mean = sum(max(variance(i) // 256, 12) for i in logits) // len(models)
                for unit, (model, i) in enumerate(zip(models, logits, strict=True)):
                    model.add(features(tile, unit, t), found[tile][unit][t], i)
                for a, fa in enumerate(f):
                    for b, fb in enumerate(f):
                        h[a][b] += fa * fb * mean
            for model in models:
                model.step(h)
                if sparse and stop >= 64:
                    model.loosen()
        memory = memory * 13 // 16 + bend
        factor = min(max(factor + factor * slope // (memory + 50 * 2**23), 512), 16384)
    return found


def slow_family(reader, setting, tiles, units, positions, pairs):
    lags = [lag for lag in (setting[0] % 16, setting[0] // 16) if lag]
    before = [(lag, min(units, 32 // len(lags))) for lag in lags]
    penalty = [2, 4, 8, 16, 32, 64, 100, 200][setting[1] % 8]
    context = [max(60, 6 * penalty)] * sum(number for _, number in before)
    regressions = [[SlowUnit([30, *context, *[penalty] * u]) for u in range(units)] for _ in range(tiles)]
    size = 1 + len(context) + units
    curvatures = [[[0] * size for _ in range(size)] for _ in range(tiles)]
    first = slow_tiles(reader, regressions, curvatures, positions, before, setting[1] // 16 % 2)
    if not pairs:
        return first, None
    for models in regressions:
        for model in models:
            model.lend()
    halved = [[[v // 2 if i and j else 0 for j, v in enumerate(row)] for i, row in enumerate(h)] for h in curvatures]
    sees = setting[1] // 8 % 2
    return first, slow_tiles(reader, regressions, halved, positions, before, 0, sees=sees)


def slow_ranks(reader, count, ranks):
    """The ranks of one matrix that shares its counts with none."""
    counts, found = [1] * ranks, []
    while len(found) < count:
        c = sum(counts)
        slots = [1 + k * (65536 - ranks) // c for k in counts]
        slots[counts.index(max(counts))] += 65536 - sum(slots)
        some = [reader.symbol(slots) for _ in range(min(max(c // 2, 64), 4096, count - len(found)))]
        counts = [k + 2 * some.count(rank) for rank, k in enumerate(counts)]
        found += some
    return found


def correlated(rng, common, units, positions):
    z = rng.standard_normal((units, len(common))) @ common + rng.standard_normal((units, positions)) / 2
    return (z > 0).astype(np.uint8)


@pytest.mark.parametrize("shared", [True, False])
def test_pairs_with_context_read_with_python_integers(shared):
    rng = np.random.default_rng(3)
    inputs, outputs = (rng.standard_normal((2, 90)) for _ in range(2))
    matrices = []
    for _ in range(3):
        up = correlated(rng, outputs if shared else rng.standard_normal((2, 90)), 5, 90)
        matrices += [correlated(rng, inputs, 5, 90), up.T]
    data = coding.encode(matrices, [2] * 6)
    assert data[0] == 1
    assert data[1] & 15, "the tiles before are seen"
    assert data[2] >> 3 & 1 == shared
    reader = SlowReader(data[3:])
    first, second = slow_family(reader, data[1:3], 3, 5, 90, pairs=True)
    np.testing.assert_array_equal(first, matrices[0::2])
    np.testing.assert_array_equal(second, [m.T for m in matrices[1::2]])
    assert reader.words == []
    assert reader.state == 2**32


def test_falling_penalties_read_with_python_integers(monkeypatch):
    monkeypatch.setattr(coding, "_MANY_UNITS", 8)
    rng = np.random.default_rng(4)
    matrix = correlated(rng, rng.standard_normal((2, 340)), 8, 340)
    data = coding.encode([matrix], [2])
    assert data[0] == 1
    assert data[2] >> 4 == 1
    found, _ = slow_family(SlowReader(data[3:]), data[1:3], 1, 8, 340, pairs=False)
    np.testing.assert_array_equal(found, [matrix])


@pytest.mark.parametrize("apart", [True, False])
def test_a_pair_is_of_neighbours_in_the_whole_list(apart):
    """A matrix of three levels, which has no bits, parts a down from its up matrix; after both it does not."""
    rng = np.random.default_rng(3)
    common = rng.standard_normal((2, 70))
    down, up = correlated(rng, common, 5, 70), correlated(rng, common, 5, 70).T
    odd = np.zeros((5, 20), dtype=np.uint8)
    matrices, levels = ([down, odd, up], [2, 3, 2]) if apart else ([down, up, odd], [2, 2, 3])
    data = coding.encode(matrices, levels)
    assert data[0] == 1
    if apart:  # two single tiles of equal sizes and levels: one family
        reader = SlowReader(data[3:])
        tiles, _ = slow_family(reader, data[1:3], 2, 5, 70, pairs=False)
        first, second = [tiles[0]], [tiles[1]]
    else:
        reader = SlowReader(data[3:])
        first, second = slow_family(reader, data[1:3], 1, 5, 70, pairs=True)
    np.testing.assert_array_equal(first, [down])
    np.testing.assert_array_equal(second, [up.T])
    assert slow_ranks(reader, 100, 3) == [0] * 100
    assert reader.words == []
    assert reader.state == 2**32


def test_no_number_can_leave_its_type():
    """The worst case of the docstring, from the constants: equal units, curvature at its most, largest penalties."""
    features = 1 + coding._CONTEXT + coding._MOST_UNITS
    limit = 1 << _units._LIMIT_BITS
    curvature = int(_units._CURVATURE.max())
    entry = (_units._LEARNED + _units._CHUNK) * curvature * 3 // 2
    row = features * entry + 2 * 6 * max(coding._PENALTIES) * 256
    q = row * limit >> 8
    assert curvature * _units._CHUNK < 2**24, "float32 holds a chunk's curvature"
    assert row * limit < 2**53, "float64 holds H d"
    assert features * 65536 * 2**20 < 2**53, "and the logits"
    assert features * limit * q < 2**63, "int64 holds d' H d"
    assert features * limit**2 << _units._ALPHA_BITS < 2**63, "and the numerator of the step"
    assert q << _units._ALPHA_BITS < 2**63, "and the step times H d"
    assert 256 * 2**20 * (2 << 14) < 2**63, "and the scaled logits"


SIGNS = """
import hashlib, numpy as np
from quant.coding import encode
rng = np.random.default_rng(0)
m = [(rng.standard_normal((24, 3)) @ rng.standard_normal((3, 400)) > rng.standard_normal((24, 400))).astype(np.uint8)]
print(hashlib.sha256(encode([*m, m[0][::-1].T.copy()] * 3, [2] * 6)).hexdigest())
"""


@pytest.mark.parametrize("kernels", ["Nehalem", "Haswell"])
def test_threads_and_instruction_sets_do_not_matter(kernels):
    """Another number of threads, other BLAS kernels, numpy without its vector code: the same bytes."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES")
    runs = []
    for threads, extra in (("1", ""), ("4", "AVX2 FMA3")):
        values = (threads, threads, kernels, extra)
        env = {"PATH": "", "PYTHONWARNINGS": "ignore", **dict(zip(names, values, strict=True))}
        runs.append(subprocess.run([sys.executable, "-c", SIGNS], env=env, capture_output=True, text=True, check=True))
    assert runs[0].stdout == runs[1].stdout
    assert len(runs[0].stdout) == 65


def test_reading_and_writing_share_one_model():
    """After the same bits a writer's and a reader's regressions are the same numbers."""
    from quant._rans import Reader, Writer

    bits = correlated(np.random.default_rng(5), np.random.default_rng(6).standard_normal((2, 70)), 6, 70)[None]
    models = [Units(tiles=1, units=6, context=0, penalty=8, context_penalty=60) for _ in range(2)]
    writer = Writer()
    code_tiles(writer, models[0], bits.copy(), [])
    code_tiles(Reader(writer.finish()), models[1], np.zeros_like(bits), [])
    np.testing.assert_array_equal(models[0].weights, models[1].weights)
    np.testing.assert_array_equal(models[0].residual, models[1].residual)
    assert models[0].factor == models[1].factor != 1 << 12
