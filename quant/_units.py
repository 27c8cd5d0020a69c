"""The chance of each bit of a matrix, from the bits at the same position of units that are known: a logistic
regression that learns online.

Unit u of a tile has at position t the bit b(u, t); as a sign x = 2 b - 1. Its features f are: a constant 1, the signs
of units of earlier tiles at t (the context), the signs of units 0 to u - 1 of its own tile at t. All positions of a
chunk are coded with

    P(b = 1) = s(a z),   z = w_u . f,   s(z) = 1 / (1 + exp(-z))

and then learned from, by one step of Newton's method on the penalised log-likelihood (each chunk adds its own
curvature, once):

    r_u += sum (b - s(z)) f,   H_u += sum max(0.6 s(z) (1 - s(z)), 0.05) f f',   H_u d = r_u,   w_u += d,   r_u -= H_u d

where two steps of conjugate gradients stand for the solution, and what they leave stays in r_u. H_u begins as the
penalty (diagonal), or as 0.6 of the H at the end of the matrix whose statistics are lent, whose w_u it then also
begins with. One factor a for all units takes back what the regressions are too sure of; it follows Newton's step on
its own log-likelihood, with a memory of five chunks.

All numbers are integers: w, z, r and d in units of 2^-16, H of 2^-8, a of 2^-12, s of 2^-16 from a table. Products
with f, and H d, are float64 matrix products of integers whose partial sums all stay below 2^53, where float64 is
exact in whatever order a machine adds; the rest is int64. Bounds: |f| <= 1, p <= 2^8 features, |w| < 2^20: |z| <
2^28. |r|, |d| <= 2^18 after ``_solve``'s shift. The curvature of a chunk is at most 38 * 64 an entry (float32, exact
below 2^24); it is summed over at most 2^13 positions: H < 2^19 plus the penalty < 2^17, so |H d| < 2^20 2^18 2^8 =
2^46.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from quant._rans import SLOT_BITS, SLOTS, Reader, Writer

W_BITS = 16  # fraction bits of weights, logits and residuals
H_BITS = 8  # fraction bits of the curvature
A_BITS = 12  # fraction bits of the factor on all logits
_STEP_BITS = 7  # the table has 2^7 entries a unit of logit
_REACH = 12 << _STEP_BITS  # and reaches to logits of -12 and 12
_GROUP = 8  # units that share the size of their H
_LEARNED = 1 << 11  # positions that add to H
_W_LIMIT = (1 << 20) - 1
_D_LIMIT = (1 << 18) - 1
_BIAS = 30  # penalty on the constant
_FIRST = (0, 1, 2, 3, 4, 6, 8, 11, 14, 18, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 224, 256)
_CHUNK = 64


def chunks(positions: int) -> list[tuple[int, int]]:
    """Ends of the chunks in which positions are coded: small while little is known, then 64."""
    ends = [e for e in _FIRST if e < positions]
    ends += range(ends[-1] + _CHUNK, positions, _CHUNK) if ends[-1] == _FIRST[-1] else []
    return list(zip(ends, [*ends[1:], positions], strict=True))


def _logistic() -> np.ndarray:
    """s(i / 128) in units of 2^-16 for i from -1536 to 1536: powers of exp(1/128) in integers of 64 fraction bits."""
    one, step, power = 1 << 64, 0, 1 << 64
    term = one
    for k in range(1, 12):  # exp(1/128) by its series
        step += term
        term = term // (k << _STEP_BITS)
    half = []
    for _ in range(_REACH + 1):
        # s(z) = e^z / (1 + e^z), rounded
        half.append(((power << (SLOT_BITS + 1)) // (one + power) + 1) >> 1)
        power = power * step >> 64
    table = np.array([SLOTS - v for v in reversed(half[1:])] + half, dtype=np.int64)
    return np.clip(table, 2, SLOTS - 2)


_CHANCE = _logistic()
_VARIANCE = _CHANCE * (SLOTS - _CHANCE) >> SLOT_BITS  # s (1 - s) in units of 2^-16
_CURVATURE = np.maximum(_VARIANCE * 6 // 10 >> SLOT_BITS - H_BITS, (5 << H_BITS) // 100).astype(np.float32)


def _index(z: np.ndarray, fraction: int) -> np.ndarray:
    """Entries of the tables for logits in units of 2^-fraction: the nearest, the end ones beyond the reach."""
    shift = fraction - _STEP_BITS
    return np.minimum(np.maximum(z.astype(np.int64) + (1 << shift - 1) >> shift, -_REACH), _REACH) + _REACH


@dataclass(kw_only=True)
class Units:
    """Regressions of all units of L tiles of U units each, with E context units.

    ``penalty``, ``context_penalty``: on weights of units of the own tile and of the context.
    """

    tiles: int
    units: int
    context: int
    penalty: int
    context_penalty: int
    factor: int = field(init=False, default=1 << A_BITS)
    _bend: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        size = 1 + self.context + self.units
        self.weights = np.zeros((self.tiles, self.units, size))
        self.residual = np.zeros((self.tiles, self.units, size), dtype=np.int64)
        self.known = np.arange(size)[None] < (1 + self.context + np.arange(self.units))[:, None]
        diagonal = np.full(size, self.penalty << H_BITS)
        diagonal[1 : 1 + self.context] = self.context_penalty << H_BITS
        diagonal[0] = _BIAS << H_BITS
        self.curvature = []
        for start in range(0, self.units, _GROUP):
            stop = min(start + _GROUP, self.units)
            p = 1 + self.context + stop - 1
            h = np.zeros((self.tiles, stop - start, p, p))
            h[...] = np.diag(diagonal[:p])
            self.curvature.append((slice(start, stop), p, h))

    def lend(self) -> None:
        """Begin anew on the next matrices with the weights and 0.6 of the curvature."""
        self.weights[:, :, 0] = 0
        self.residual[...] = 0
        self.factor, self._bend = 1 << A_BITS, 0
        for _, _, h in self.curvature:
            np.floor(h * 0.625, out=h)  # exact: h is an integer below 2^53 / 5
            h[..., 0, :] = 0
            h[..., :, 0] = 0
            h[..., 0, 0] = _BIAS << H_BITS

    def learn(self, f: np.ndarray, bits: np.ndarray, counted: bool) -> None:
        """Take in a chunk: features (L, p, n) and the units' bits (L, U, n) at its positions."""
        z = self.weights @ f
        index = _index(z, W_BITS)
        error = (bits.astype(np.int64) << SLOT_BITS) - _CHANCE[index]
        self.residual += np.where(self.known, (error.astype(np.float64) @ f.transpose(0, 2, 1)).astype(np.int64), 0)
        if counted:
            weight = _CURVATURE[index]
            single = f.astype(np.float32)
            for units, p, h in self.curvature:
                fp = single[:, None, :p]
                h += (fp * weight[:, units, None]) @ fp.transpose(0, 1, 3, 2)
        self._follow(z, bits)
        for units, p, h in self.curvature:
            self._solve(units, p, h)

    def _follow(self, z: np.ndarray, bits: np.ndarray) -> None:
        """One Newton step of the factor a on all logits."""
        index = _index(z * self.factor, W_BITS + A_BITS)
        logit = _index(z, W_BITS) - _REACH  # 2^-7
        error = (bits.astype(np.int64) << SLOT_BITS) - _CHANCE[index]
        slope = int((error * logit).sum())  # 2^-23
        self._bend = self._bend * 13 // 16 + int(((_VARIANCE[index] * logit >> _STEP_BITS) * logit).sum())
        step = (slope << A_BITS) // (self._bend + (50 << SLOT_BITS + _STEP_BITS))
        self.factor = min(max(self.factor + step, 1 << A_BITS - 3), 1 << A_BITS + 2)

    def _solve(self, units: slice, p: int, h: np.ndarray) -> None:
        """Two steps of conjugate gradients on H d = r from d = 0; every lane on its own scale 2^e."""
        known = self.known[units, :p]
        residual = self.residual[:, units, :p]
        top = np.abs(residual).max(axis=2, keepdims=True)
        e = np.maximum(np.frexp(top.astype(np.float64))[1].astype(np.int64) - 18, 0)
        r = residual >> e
        total = np.zeros_like(r)
        d = r
        norm = (r * r).sum(axis=2, keepdims=True)  # <= 2^8 2^36
        for last in (False, True):
            q = np.where(known, (h @ d[..., None].astype(np.float64))[..., 0].astype(np.int64) >> H_BITS, 0)
            along = np.maximum((d * q).sum(axis=2, keepdims=True), 1)
            alpha = np.minimum((norm << 18) // along, 1 << 18)
            total += alpha * d >> 18
            r = np.minimum(np.maximum(r - (alpha * q >> 18), -_D_LIMIT), _D_LIMIT)
            if not last:
                grown = (r * r).sum(axis=2, keepdims=True)
                beta = np.minimum((grown << 12) // np.maximum(norm, 1), 4 << 12)
                d = np.minimum(np.maximum(r + (beta * d >> 12), -_D_LIMIT), _D_LIMIT)
                norm = grown
        self.residual[:, units, :p] = r << e
        w = self.weights[:, units, :p]
        w += total << e
        np.clip(w, -_W_LIMIT, _W_LIMIT, out=w)


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
    count, units, positions = tiles.shape
    own = 1 + model.context
    f = np.zeros((count, own + units, positions))
    f[:, 0] = 1
    f[:, own:] = tiles * 2.0 - 1

    sources = [(at, lag, slice(own, own + number)) for at, (lag, number) in zip(_starts(before), before, strict=True)]
    for at, lag, seen in sources:
        f[lag:, at : at + seen.stop - own] = f[: max(count - lag, 0), seen]
    shift = W_BITS + A_BITS - _STEP_BITS
    for start, stop in chunks(positions):
        span = slice(start, stop)
        here = f[:, :, span]
        scaled = model.weights * model.factor  # < 2^34, and 2^42 when summed
        if isinstance(coder, Reader):
            # the constant's weight takes the index of the table's middle and half a step for rounding with it
            scaled[:, :, 0] += (_REACH << shift) + (1 << shift - 1)
            for lane in range(count):
                mine = here[lane]
                for at, lag, seen in sources:
                    if lane >= lag:
                        mine[at : at + seen.stop - own] = here[lane - lag, seen]
                for unit, w in enumerate(scaled[lane]):
                    index = (w @ mine).astype(np.int64) >> shift
                    mine[own + unit] = coder.signs(_CHANCE.take(index, mode="clip"))
            tiles[:, :, span] = here[:, own:] > 0
        else:
            coder.bits(_CHANCE[_index(scaled @ here, W_BITS + A_BITS)].reshape(-1), tiles[:, :, span].reshape(-1))
        model.learn(here, tiles[:, :, span], counted=start < _LEARNED)


def _starts(before: list[tuple[int, int]]) -> list[int]:
    """Where each stretch of the context begins among the features; the constant is first."""
    return [1 + sum(number for _, number in before[:i]) for i in range(len(before))]
