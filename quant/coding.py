"""The lossless second stage of a file: codes of many matrices, smaller than packed where units repeat one another.

A matrix is read as units x positions, its units along the shorter axis (rows, if it is square). Hidden units predict
one another: their codes at one position are signs of nearly the same direction. So the half of the levels that a code
is in, one bit (at 1 bit all there is), is coded by a regression on the units already known; ``quant._units`` states
the formula. What is left of a code, its rank from the middle, is coded by counts of the ranks before it. Of an odd
number of levels the whole code is its rank.

A down matrix (r x a) followed by its up matrix (b x r), r < a and r < b, of as many levels is a pair: the up matrix's
regressions begin with the weights of the down matrix's. Pairs of equal shapes are a family and coded together, tile
after tile; a tile also sees units of the tiles one or two before it. Matrices without a partner are families of
single tiles.

Stream: one byte, 0 or 1. 0: the codes as ``quant.pack`` packs them, matrix after matrix. 1: two bytes for each
family, then the entropy-coded stream of ``quant._rans``. docs/coding.md has all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from quant._rans import SLOTS, Reader, Writer
from quant._units import Units, code_tiles
from quant.errors import QuantError
from quant.pack import pack, packed_bytes, unpack

_PACKED, _MODELLED = 0, 1
_MOST_UNITS = 100  # of a tile; longer matrices are cut
_FEW_UNITS = 4  # matrices of no more are stacked into tiles
_MOST_WORK = 1 << 24  # tiles x units x features^2 of a run, which bounds what is held at a time
_CONTEXT = 32  # units seen of tiles before, shared by two of them
_MOST_LAG = 8
_MANY_UNITS = 64  # of which few are near one another: the writer lets penalties fall
_PENALTIES = (2, 4, 8, 16, 32, 64, 100, 200)
_MOST_SYMBOLS = 4096  # coded with the same counts

_Part = tuple[int, slice]  # a matrix and which of its units


@dataclass
class _Family:
    """Tiles of equal sizes, each a stack of parts of matrices; of pairs there are as many second tiles, else none."""

    first: list[list[_Part]] = field(default_factory=list)
    second: list[list[_Part]] = field(default_factory=list)


def encode(matrices: Sequence[np.ndarray], levels: Sequence[int]) -> bytes:
    """Code matrices (uint8, 2-D), each of codes below its number of levels (2 to 256).

    At most one byte longer than the packed codes. A matrix that is not 2-D or not uint8, or a code that is none of the
    levels, is a QuantError.
    """
    shapes = [tuple(m.shape) for m in matrices]
    _check(shapes, levels)
    packed = b"".join(pack(m, _bits(k), k) for m, k in zip(matrices, levels, strict=True))
    planes = [m.T if m.shape[0] > m.shape[1] else m for m in matrices]
    tops = [_top(m, k) for m, k in zip(planes, levels, strict=True)]
    families = _families(shapes, levels)
    settings = [_choose(family, tops) for family in families]
    writer = Writer()
    for family, setting in zip(families, settings, strict=True):
        _code_family(writer, family, setting, tops)
    _code_ranks(writer, tops, [_rank(m, k) for m, k in zip(planes, levels, strict=True)], levels)
    coded = bytes([_MODELLED]) + b"".join(settings) + writer.finish()
    return coded if len(coded) <= len(packed) else bytes([_PACKED]) + packed


def decode(data: bytes, shapes: Sequence[tuple[int, int]], levels: Sequence[int]) -> list[np.ndarray]:
    """The matrices (uint8) of these shapes and levels that ``encode`` made the bytes from.

    Raises
    ------
    QuantError
        If the bytes are truncated, damaged, or not made from matrices of these shapes and levels.
    """
    _check(shapes, levels)
    if not data or data[0] not in (_PACKED, _MODELLED):
        raise QuantError(f"expected codes that begin with a byte {_PACKED} or {_MODELLED}, found {data[:1]!r}")
    if data[0] == _PACKED:
        return _unpack(data[1:], shapes, levels)
    families = _families(shapes, levels)
    at = 1 + 2 * len(families)
    settings, reader = [data[i : i + 2] for i in range(1, at, 2)], Reader(data[at:])
    if any(s[1] >> 5 or max(s[0] & 15, s[0] >> 4) > _MOST_LAG for s in settings):
        raise QuantError(f"expected settings of families with lags up to {_MOST_LAG}, found {data[1:at].hex()}")
    tops = [np.zeros((min(s), max(s)), dtype=np.uint8) for s in shapes]
    ranks = [np.zeros_like(t) for t in tops]
    for family, setting in zip(families, settings, strict=True):
        _code_family(reader, family, setting, tops)
    _code_ranks(reader, tops, ranks, levels)
    reader.finish()
    planes = [_join(t, r, k) for t, r, k in zip(tops, ranks, levels, strict=True)]
    return [np.ascontiguousarray(p.T if s[0] > s[1] else p) for p, s in zip(planes, shapes, strict=True)]


def _check(shapes: Sequence[tuple[int, ...]], levels: Sequence[int]) -> None:
    if len(shapes) != len(levels):
        raise QuantError(f"expected as many levels as matrices, found {len(levels)} and {len(shapes)}")
    for shape, k in zip(shapes, levels, strict=True):
        if len(shape) != 2 or min(shape) < 0:
            raise QuantError(f"expected matrices of two axes, found the shape {shape}")
        if not 2 <= k <= 256:
            raise QuantError(f"expected 2 to 256 levels, found {k}")


def _bits(levels: int) -> int:
    return (levels - 1).bit_length()


def _unpack(data: bytes, shapes: Sequence[tuple[int, ...]], levels: Sequence[int]) -> list[np.ndarray]:
    """The codes, packed one matrix after the other.

    Raises
    ------
    QuantError
        If the bytes are not as many as those of the codes.
    """
    sizes = [packed_bytes(s[0] * s[1], _bits(k), k) for s, k in zip(shapes, levels, strict=True)]
    if len(data) != sum(sizes):
        raise QuantError(f"expected {sum(sizes)} bytes of packed codes, found {len(data)}")
    matrices, at = [], 0
    for shape, k, size in zip(shapes, levels, sizes, strict=True):
        matrices.append(unpack(data[at : at + size], _bits(k), shape[0] * shape[1], k).reshape(shape))
        at += size
    return matrices


# a code of an even number K of levels: whether it is in the upper half, and its rank from the middle, 0 to K / 2 - 1


def _top(codes: np.ndarray, levels: int) -> np.ndarray:
    return (codes >= levels // 2).astype(np.uint8) if levels % 2 == 0 else np.zeros_like(codes)


def _rank(codes: np.ndarray, levels: int) -> np.ndarray:
    half = levels // 2
    return np.where(codes >= half, codes - half, half - 1 - codes).astype(np.uint8) if levels % 2 == 0 else codes


def _join(top: np.ndarray, rank: np.ndarray, levels: int) -> np.ndarray:
    half = levels // 2
    return np.where(top, half + rank, half - 1 - rank).astype(np.uint8) if levels % 2 == 0 else rank


def _families(shapes: Sequence[tuple[int, ...]], levels: Sequence[int]) -> list[_Family]:
    """The families of matrices of an even number of levels, in the order of their first matrices."""
    families: dict[tuple[object, ...], _Family] = {}
    stacks: dict[int, list[int]] = {}
    i = 0
    while i < len(shapes):
        units, positions = sorted(shapes[i])
        if levels[i] % 2 or not units:
            i += 1
        elif units <= _FEW_UNITS:
            stacks.setdefault(positions, []).append(i)
            i += 1
        elif _is_pair(shapes[i : i + 2], levels[i : i + 2]):
            family = families.setdefault((*shapes[i], *shapes[i + 1], levels[i]), _Family())
            family.first += _cut(i, units)
            family.second += _cut(i + 1, units)
            i += 2
        else:
            for tile in _cut(i, units):
                part = tile[0][1]
                families.setdefault((part.stop - part.start, positions, levels[i]), _Family()).first.append(tile)
            i += 1
    for positions, matrices in stacks.items():
        stack: list[_Part] = []
        rows = 0
        for m in matrices:
            if rows + min(shapes[m]) > _MOST_UNITS:
                families["stack", positions, m] = _Family([stack])
                stack, rows = [], 0
            stack = [*stack, (m, slice(0, min(shapes[m])))]
            rows += min(shapes[m])
        families["stack", positions] = _Family([stack])
    return list(families.values())


def _is_pair(shapes: Sequence[tuple[int, ...]], levels: Sequence[int]) -> bool:
    if len(shapes) < 2 or levels[0] != levels[1]:
        return False
    (r, a), (b, s) = shapes
    return r == s and r < min(a, b) and r <= _MOST_UNITS


def _cut(matrix: int, units: int) -> list[list[_Part]]:
    """Tiles of one matrix, of as many units as a tile may have; the last has what is left."""
    ends = range(0, units, _MOST_UNITS)
    return [[(matrix, slice(at, min(at + _MOST_UNITS, units)))] for at in ends]


def _positions(tile: list[_Part], tops: list[np.ndarray]) -> int:
    return tops[tile[0][0]].shape[1]


def _stack(tiles: list[list[_Part]], tops: list[np.ndarray]) -> np.ndarray:
    return np.stack([np.concatenate([tops[m][units] for m, units in tile]) for tile in tiles])


def _choose(family: _Family, tops: list[np.ndarray]) -> bytes:
    """The two bytes of a family's settings, from squared correlations of units.

    First byte: the two lags of the tiles that are seen, 4 bits each, 0 for none. Second byte: the penalty's index (3
    bits), whether second tiles see the second tiles before them, whether penalties fall with the weight. Only a writer
    calls this, so it may use floats.
    """
    first = _stack(family.first, tops).astype(np.float32) * 2 - 1
    second = _stack(family.second, tops).astype(np.float32) * 2 - 1 if family.second else first
    units = first.shape[1]
    # mean squared correlations in excess of chance, which gives 1 / positions; in units of chance
    lags = {lag: _excess(first[lag:], first[:-lag]) for lag in range(1, min(_MOST_LAG, len(first) - 1) + 1)}
    best = sorted(lags, key=lambda lag: -lags[lag])[:2]
    seen = [lag for lag in best if lags[lag] > max(1, 0.6 * lags[best[0]])]
    shared = bool(seen) and bool(family.second) and _excess(second[seen[0] :], second[: -seen[0]]) > 1
    same = sum((_excess(x, x) * units - x.shape[2] + 1) / max(units - 1, 1) / x.shape[2] for x in (first, second)) / 2
    sparse = not family.second and units >= _MANY_UNITS
    wanted = np.log(4.0 if sparse else 2.5) - 0.6 * np.log(max(same, 1e-3))
    penalty = int(np.argmin(np.abs(np.log(_PENALTIES) - wanted)))
    return bytes([sum(lag << 4 * i for i, lag in enumerate(seen)), penalty | shared << 3 | sparse << 4])


def _excess(x: np.ndarray, y: np.ndarray) -> float:
    """Mean squared correlation of the units of x and y (L, U, P), in units of chance, less 1."""
    positions = x.shape[2]
    return float(np.square(x @ y.transpose(0, 2, 1)).mean()) / positions - 1


def _code_family(coder: Writer | Reader, family: _Family, setting: bytes, tops: list[np.ndarray]) -> None:
    """Write the family's matrices from ``tops``, or read them into it."""
    units = sum(part.stop - part.start for _, part in family.first[0])
    lags = [lag for lag in (setting[0] & 15, setting[0] >> 4) if lag]
    before = [(lag, min(units, _CONTEXT // len(lags))) for lag in lags]
    context = sum(number for _, number in before)
    penalty = _PENALTIES[setting[1] & 7]
    together = max(1, _MOST_WORK // (units * (1 + context + units) ** 2))
    for at in range(0, len(family.first), together):
        some = slice(at, at + together)
        model = Units(
            tiles=len(family.first[some]),
            units=units,
            context=context,
            penalty=penalty,
            context_penalty=max(60, 6 * penalty),
            sparse=bool(setting[1] >> 4),
        )
        _code_tiles(coder, model, family.first[some], tops, before)
        if family.second:
            model.lend()
            _code_tiles(coder, model, family.second[some], tops, before if setting[1] >> 3 & 1 else [])


def _code_tiles(
    coder: Writer | Reader,
    model: Units,
    tiles: list[list[_Part]],
    tops: list[np.ndarray],
    before: list[tuple[int, int]],
) -> None:
    reads = isinstance(coder, Reader)
    bits = np.zeros((model.tiles, model.units, _positions(tiles[0], tops)), np.uint8) if reads else _stack(tiles, tops)
    code_tiles(coder, model, bits, before)
    if reads:
        for tile, found in zip(tiles, bits, strict=True):
            at = 0
            for m, part in tile:
                tops[m][part] = found[at : at + part.stop - part.start]
                at += part.stop - part.start


def _code_ranks(coder: Writer | Reader, tops: list[np.ndarray], ranks: list[np.ndarray], levels: Sequence[int]) -> None:
    """Write or read the ranks of all matrices; matrices of as many levels and equal shape share their counts."""
    known: dict[tuple[object, ...], np.ndarray] = {}
    for plane, k in zip(ranks, levels, strict=True):
        alphabet = k if k % 2 else k // 2
        if alphabet == 1:
            continue
        counts = known.setdefault((k, plane.shape), np.ones(alphabet, dtype=np.int64))
        flat, at = plane.reshape(-1), 0
        while at < flat.size:
            # as many as are known already, so the counts are never older than half of what they could be
            stop = min(at + min(max(int(counts.sum()) // 2, 64), _MOST_SYMBOLS), flat.size)
            if isinstance(coder, Reader):
                flat[at:stop] = coder.symbols(_slots(counts), stop - at)
            else:
                coder.symbols(_slots(counts), flat[at:stop])
            counts += 2 * np.bincount(flat[at:stop], minlength=alphabet)
            at = stop


def _slots(counts: np.ndarray) -> np.ndarray:
    """2^16 slots shared out by counts, at least one each; the most frequent (first of equals) takes what is left."""
    slots = 1 + counts * (SLOTS - counts.size) // counts.sum()
    slots[np.argmax(counts)] += SLOTS - slots.sum()
    return slots
