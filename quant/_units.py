"""The chance of each bit of a matrix, from the bits of known units at the same position: logistic regressions that
learn online, in whole numbers.

Unit u of a tile has at position t the bit b, as a sign x = 2 b - 1. Its features f are: a constant 1, the signs at t of
units of earlier tiles (the context), the signs at t of units 0 to u - 1 of its own tile. With s(z) = 1 / (1 + exp(-z)),

    P(b = 1) = s(a m z),   z = w_u . f

m is the scale of position t of the tile, for at some positions all units are surer than at others: one Newton step
on the likelihood of the units before, with a prior of weight 10 for m = 1,

    m = 1 + S / (10 + I),   S = sum of z (b - s(z)),   I = sum of z^2 s(z) (1 - s(z))   over units 0 to u - 1 at t

and a is one factor for all units that takes back what the regressions are too sure of. Positions are coded in chunks.
After each chunk comes one step of Newton's method on the penalised log-likelihood, in which a chunk adds its curvature
once (those that end at 2^11 + 64 or before do):

    r_u += sum (b - s(z)) f,   H += sum c f f',   (H + D_u) d = r_u,   w_u += d,   r_u -= (H + D_u) d

H is one for all units of a tile, of which each takes the features it has; at each position c is the mean over the
units of max(s(z) (1 - s(z)), 0.05). On the files this was made for, that costs 0.1 % of the bytes that an H for each
unit gave, at a hundredth of the work. Three steps of conjugate gradients stand for the solution; what they leave stays
in r_u. D_u is the penalty L, a diagonal. Where few weights are large (``sparse``), it is set to 2 L / (1 + L w^2) after
each chunk from position 64 on. The next matrix of a pair begins with these w_u and half of this H. a follows Newton's
step likewise, with a memory.

Numbers: w, z, r, d in units of 2^-16, H, D of 2^-8, a and m of 2^-12, S and I of 2^-8, s of 2^-16 from a table at steps
of 2^-7. Products with f, and H d, are float64 matrix products of integers whose partial sums all stay below 2^53, where
float64 is exact in whatever order a machine adds; a chunk's curvature is a float32 product below 2^24; all else is
int64 below 2^63. With p < 2^8 features of |f| <= 1: |w| < 2^20, so |z| < 2^28. A chunk adds at most 2^6 2^6 to an entry
of H; the 2^11 + 64 positions and half of another matrix's give less than 2^17.7, the penalty less than 2^19.3 on the
diagonal: rows of |H| + D sum to less than 2^26, so with |r|, |d| <= 2^18 (each unit on its own scale): |(H + D) d| <
2^44, and |d' (H + D) d| < 2^62 in the units of the code.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from quant._rans import SLOT_BITS, SLOTS, Reader, Writer

W_BITS = 16  # fraction bits of weights, logits and residuals
H_BITS = 8  # fraction bits of the curvature
A_BITS = 12  # fraction bits of the factors a and m
_STEP_BITS = 7  # the table has 2^7 entries a unit of logit
_REACH = 12 << _STEP_BITS  # and reaches to logits of -12 and 12
_LEARNED = 1 << 11  # positions that add to H
_LIMIT_BITS = 18
_ALPHA_BITS = 18
_BETA_BITS = 12
_BIAS = 30  # penalty on the constant
_PRIOR = 10 << 8  # of the scale of a position
_ENDS = (0, 2, 6, 12, 20, 32, 48, 64, 96, 128, 192, 256)
_CHUNK = 64
_SPARSE_FROM = 64
_MOST_HELD = 1 << 20  # numbers of a chunk's features, or of a matrix of the solution, that are held at a time


def chunks(positions: int) -> list[tuple[int, int]]:
    """The chunks in which positions are coded: small while little is known, then of 64."""
    ends = [*_ENDS, *range(_ENDS[-1] + _CHUNK, positions, _CHUNK)]
    ends = [end for end in ends if end < positions]
    return list(zip(ends, [*ends[1:], positions], strict=True))


def _logistic() -> np.ndarray:
    """s(i / 128) in units of 2^-16 for i from -1536 to 1536: powers of exp(1 / 128) in integers of 64 fraction bits."""
    step, term = 0, 1 << 64
    for k in range(1, 12):  # exp(1 / 128) = sum of (1 / 128)^k / k!
        step += term
        term //= k << _STEP_BITS
    power, upper = 1 << 64, []
    for _ in range(_REACH + 1):
        # s(z) = e^z / (1 + e^z), rounded
        upper.append(((power << SLOT_BITS + 1) // ((1 << 64) + power) + 1) >> 1)
        power = power * step >> 64
    table = np.array([SLOTS - v for v in upper[:0:-1]] + upper, dtype=np.int64)
    return np.clip(table, 2, SLOTS - 2)


_CHANCE = _logistic()
_LOGIT = np.arange(-_REACH, _REACH + 1)  # 2^-7
_VARIANCE = _CHANCE * (SLOTS - _CHANCE) >> SLOT_BITS  # s (1 - s), 2^-16
_CURVATURE = np.maximum(_VARIANCE >> SLOT_BITS - H_BITS, (5 << H_BITS) // 100).astype(np.float32)
_INFORMATION = (_VARIANCE * _LOGIT >> SLOT_BITS - 1) * _LOGIT >> _STEP_BITS  # z^2 s (1 - s), 2^-8
# what a unit adds to 10 + I, and to 10 + I + S if its bit is 0, and besides if it is 1, of S = sum of z (b - s); 2^-8
_ADDED = np.stack([_INFORMATION, _INFORMATION - (_LOGIT * _CHANCE >> SLOT_BITS - 1), 2 * _LOGIT])
_SIGN = np.array([-1.0, 1.0])


def _index(z: np.ndarray, fraction: int) -> np.ndarray:
    """Entries of the tables for logits (int64) in units of 2^-fraction: the nearest, beyond the reach the last."""
    shift = fraction - _STEP_BITS
    return np.minimum(np.maximum(z + ((_REACH << shift) + (1 << shift - 1)) >> shift, 0), 2 * _REACH)


def _scaled(z: np.ndarray, above: np.ndarray, below: np.ndarray, factor: int) -> np.ndarray:
    """The product a m z in units of 2^-28 from z; m = above / below, from 1/4 to 2."""
    return z * np.minimum(np.maximum(above * factor // below, factor >> 2), factor << 1)


@dataclass(kw_only=True)
class Units:
    """Regressions of all units of L tiles of U units each, with E context units.

    ``penalty``, ``context_penalty``: L of weights of units of the own tile and of the context.
    """

    tiles: int
    units: int
    context: int
    penalty: int
    context_penalty: int
    sparse: bool = False
    factor: int = field(init=False, default=1 << A_BITS)
    _bend: int = field(init=False, default=0)
    _slope: int = field(init=False, default=0)
    _bent: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        size = 1 + self.context + self.units
        self.weights = np.zeros((self.tiles, self.units, size))  # float64 for its products; always whole numbers
        self.residual = np.zeros((self.tiles, self.units, size), dtype=np.int64)
        self.known = np.arange(size) < (1 + self.context + np.arange(self.units))[:, None]
        start = [_BIAS] + [self.context_penalty] * self.context + [self.penalty] * self.units
        self.start = np.array(start, dtype=np.int64)
        self.diagonal = np.zeros_like(self.residual) + (self.start << H_BITS)
        self.curvature = np.zeros((self.tiles, size, size))

    def lend(self) -> None:
        """Begin anew, on the next matrices, with the weights and half of the curvature."""
        self.weights[:, :, 0] = 0
        self.residual[...] = 0
        self.factor, self._bend = 1 << A_BITS, 0
        np.floor(self.curvature / 2, out=self.curvature)
        self.curvature[:, 0] = 0
        self.curvature[:, :, 0] = 0

    def lanes(self) -> list[slice]:
        """The tiles in runs that are taken one after the other, so that what is held has a bound."""
        together = max(1, _MOST_HELD // (self.weights.shape[2] * max(self.units, _CHUNK)))
        return [slice(at, min(at + together, self.tiles)) for at in range(0, self.tiles, together)]

    def index(self, z: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Entries of the tables for a m z, of a chunk's logits z and bits (L, U, n)."""
        known, least, more = _ADDED[:, _index(z, W_BITS)]
        gained = least + more * bits
        below = _PRIOR + np.cumsum(known, axis=1) - known
        above = _PRIOR + np.cumsum(gained, axis=1) - gained
        return _index(_scaled(z, above, below, self.factor), W_BITS + A_BITS)

    def learn(self, lanes: slice, f: np.ndarray, bits: np.ndarray, stop: int) -> None:
        """Take in a chunk of some tiles, which ends at ``stop``: features (L, p, n) and the units' bits (L, U, n)."""
        z = (self.weights[lanes] @ f).astype(np.int64)
        index = _index(z, W_BITS)
        error = (bits.astype(np.int64) << SLOT_BITS) - _CHANCE[index]
        back = f.transpose(0, 2, 1)
        self.residual[lanes] += np.where(self.known, (error.astype(np.float64) @ back).astype(np.int64), 0)
        if stop <= _LEARNED + _CHUNK:
            mean = _CURVATURE[index].sum(axis=1, keepdims=True) // self.units
            self.curvature[lanes] += (f * mean).astype(np.float32) @ back.astype(np.float32)
        self._see(self.index(z, bits), bits)
        self._solve(lanes)
        if self.sparse and stop >= _SPARSE_FROM:
            self._loosen(lanes)

    def _see(self, index: np.ndarray, bits: np.ndarray) -> None:
        """Add to slope sum y (b - s(y)) and bend sum y^2 s(y) (1 - s(y)) of log a, y = a m z; both in 2^-23."""
        logit = _LOGIT[index]
        self._slope += int((((bits.astype(np.int64) << SLOT_BITS) - _CHANCE[index]) * logit).sum())
        self._bent += int((_VARIANCE[index] * logit * logit >> _STEP_BITS).sum())

    def follow(self) -> None:
        """One Newton step of log a, after a chunk of all tiles."""
        self._bend = self._bend * 13 // 16 + self._bent
        step = self.factor * self._slope // (self._bend + (50 << SLOT_BITS + _STEP_BITS))
        self.factor = min(max(self.factor + step, 1 << A_BITS - 3), 1 << A_BITS + 2)
        self._slope = self._bent = 0

    def _solve(self, lanes: slice) -> None:
        """Three steps of conjugate gradients on (H + D) d = r, d = 0 at first; r and d of a unit in 2^(e - 16)."""
        limit = (1 << _LIMIT_BITS) - 1
        residual, diagonal, curvature = self.residual[lanes], self.diagonal[lanes], self.curvature[lanes]
        top = np.abs(residual).max(axis=2, keepdims=True)
        e = np.maximum(np.frexp(top.astype(np.float64))[1].astype(np.int64) - _LIMIT_BITS, 0)
        r = residual >> e
        d, total = r, np.zeros_like(r)
        norm = (r * r).sum(axis=2, keepdims=True)  # < 2^44
        for last in (False, False, True):
            q = (d.astype(np.float64) @ curvature).astype(np.int64) + d * diagonal >> H_BITS
            q[:, ~self.known] = 0
            along = np.maximum((d * q).sum(axis=2, keepdims=True), 1)
            alpha = np.minimum((norm << _ALPHA_BITS) // along, 1 << _ALPHA_BITS)
            total += alpha * d >> _ALPHA_BITS
            r = np.minimum(np.maximum(r - (alpha * q >> _ALPHA_BITS), -limit), limit)
            if not last:
                left = (r * r).sum(axis=2, keepdims=True)
                beta = np.minimum((left << _BETA_BITS) // np.maximum(norm, 1), 4 << _BETA_BITS)
                d = np.minimum(np.maximum(r + (beta * d >> _BETA_BITS), -limit), limit)
                norm = left
        residual[...] = r << e
        weights = self.weights[lanes]
        weights += total << e
        np.clip(weights, -(1 << 20) + 1, (1 << 20) - 1, out=weights)

    def _loosen(self, lanes: slice) -> None:
        """Penalties that fall with the weight: 2 L / (1 + L w^2); the residual is that of the new penalised problem."""
        w, diagonal = self.weights[lanes].astype(np.int64), self.diagonal[lanes]
        wanted = (self.start << H_BITS + 1 + W_BITS) // ((1 << W_BITS) + (w * w >> W_BITS) * self.start)
        wanted[:, :, 0] = diagonal[:, :, 0]
        self.residual[lanes] -= (wanted - diagonal) * w >> H_BITS
        diagonal[...] = wanted


def code_tiles(
    coder: Writer | Reader,
    model: Units,
    tiles: np.ndarray,
    before: list[tuple[int, int]],
) -> None:
    """Write or read L tiles of bits, uint8 (L, U, P), in chunks of positions, then tile by tile, unit by unit.

    The context of tile l: the first ``number`` units of tile l - lag for each (lag, number) of ``before``, zeros where
    there is none. A reader fills ``tiles`` in.
    """
    own = 1 + model.context
    for start, stop in chunks(tiles.shape[2]):
        here = tiles[:, :, start:stop]
        if isinstance(coder, Reader):
            for lane in range(len(here)):
                f = _features(here, slice(lane, lane + 1), before, own)[0]
                _read_tile(coder, model, lane, f, own)
                here[lane] = f[own:] > 0
        for lanes in model.lanes():
            f, bits = _features(here, lanes, before, own), here[lanes]
            if isinstance(coder, Writer):
                index = model.index((model.weights[lanes] @ f).astype(np.int64), bits)
                coder.bits(_CHANCE[index].reshape(-1), bits.reshape(-1))
            model.learn(lanes, f, bits, stop)
        model.follow()


def _features(bits: np.ndarray, lanes: slice, before: list[tuple[int, int]], own: int) -> np.ndarray:
    """The features (l, p, n) of some tiles at a chunk's positions; ``bits`` (L, U, n) of all, 0 where none is known."""
    f = np.zeros((lanes.stop - lanes.start, own + bits.shape[1], bits.shape[2]))
    f[:, 0] = 1
    f[:, own:] = _SIGN[bits[lanes]]
    at = 1
    for lag, number in before:
        first = max(lanes.start, lag)
        if first < lanes.stop:
            f[first - lanes.start :, at : at + number] = _SIGN[bits[first - lag : lanes.stop - lag, :number]]
        at += number
    return f


def _read_tile(reader: Reader, model: Units, lane: int, f: np.ndarray, own: int) -> None:
    """Read the units of one tile in one chunk into its features (p, n): as ``Units.index``, but unit after unit.

    The inner loop of reading, so with few calls: constants are arrays, sums are in place, the tables clip.
    """
    sums = np.full((2, f.shape[1]), _PRIOR)
    below, above = sums
    shift, last_shift = np.array(W_BITS - _STEP_BITS), np.array(W_BITS + A_BITS - _STEP_BITS)
    middle, last_middle = ((_REACH << s) + (1 << s - 1) for s in (shift, last_shift))
    factor, least, most = np.array(model.factor), np.array(model.factor >> 2), np.array(model.factor << 1)
    for w, row in zip(model.weights[lane], f[own:], strict=True):
        z = (w @ f).astype(np.int64)
        scaled = above * factor
        scaled //= below
        np.maximum(scaled, least, out=scaled)
        np.minimum(scaled, most, out=scaled)
        scaled *= z
        scaled += last_middle
        scaled >>= last_shift
        bits = reader.bits(_CHANCE.take(scaled, mode="clip").tolist())
        _SIGN.take(bits, out=row, mode="clip")
        z += middle
        z >>= shift
        added = _ADDED.take(z, axis=1, mode="clip")
        sums += added[:2]
        more = added[2]
        more *= bits
        above += more
