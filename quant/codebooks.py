"""Codebooks for weights of mean 0 and deviation 1: the best 2^b values for the expected absolute or squared error.

Symbols: v_i values, ascending; r_i boundaries between neighbours; Phi, phi the normal distribution and density; the
cell of v_i is (r_{i-1}, r_i]. At the optimum each boundary is the midpoint of its two values, and each value is the
median (L1) or mean (L2) of its cell. The plain iteration of these two steps needs 1e5 rounds at 8 bits, so the optimum
is solved by Newton; the 500 rounds that released files were made with are kept as :func:`released` (PAPER 1.1). For
Laplace weights a recursion gives it; the other codebooks are quantiles and evenly spaced values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.linalg import solve_banded
from scipy.special import lambertw, ndtr, ndtri, roots_legendre

from quant.errors import QuantError, unknown

Norm = Literal["l1", "l2"]
_NODES, _WEIGHTS = roots_legendre(20)


@dataclass(frozen=True, kw_only=True, eq=False)
class Codebook:
    """Values and the boundaries between them, for standardised weights.

    values: float64 (K,), ascending; K = 2^b but for few. boundaries: float64 (K - 1,), ascending; a weight on a
    boundary belongs to the lower value. Both arrays are read-only.
    """

    values: np.ndarray
    boundaries: np.ndarray

    def __post_init__(self) -> None:
        self.values.setflags(write=False)
        self.boundaries.setflags(write=False)


@lru_cache
def gaussian(bits: int, norm: Norm = "l1") -> Codebook:
    """The optimal codebook for N(0, 1), residual below 1e-13 (rule 22).

    Parameters
    ----------
    bits
        1 to 8.
    norm
        ``l1``: least E|w - q| (PAPER 1.1). ``l2``: least E(w - q)^2, the Lloyd-Max quantiser.

    Raises
    ------
    QuantError
        If the bits or the norm are none of these.
    """
    if norm not in {"l1", "l2"}:
        raise QuantError(unknown("norm", norm, ["l1", "l2"]))
    half = _solve(2 ** check_bits(bits) // 2, norm)
    return midpoints(np.concatenate([-half[::-1], half]))  # symmetric to the last bit


@lru_cache
def released(bits: int) -> Codebook:
    """The codebook of the paper's released code: 500 literal rounds from zeros (PAPER 1.1), not converged above 4 bits.

    The boundaries are midpoints of the values of the round before, as there. bits: 1 to 8, else a QuantError.
    """
    values = np.zeros(2 ** check_bits(bits))
    boundaries = values[1:]
    for _ in range(500):
        boundaries = (values[:-1] + values[1:]) / 2
        p = np.concatenate([[0.0], ndtr(boundaries), [1.0]])
        values = ndtri((p[:-1] + p[1:]) / 2)
    return Codebook(values=values, boundaries=boundaries)


@lru_cache
def laplace(bits: int, norm: Norm = "l2") -> Codebook:
    """The optimal codebook for Laplace weights of mean 0 and standard deviation 1.

    An exponential tail looks the same from everywhere, so the cells follow from the outermost inwards: with b the
    distance of a value to its upper boundary (of the last one infinite), its distance a to the lower one is

        L1: a = ln(2 - e^-b), the median of the cell.    L2: (1 - a) e^a = (1 + b) e^-b, its mean.

    and a boundary lies as far above the next value as below the last. Sullivan 1996 has the same for L2.

    Raises
    ------
    QuantError
        If the bits or the norm are none.
    """
    if norm not in {"l1", "l2"}:
        raise QuantError(unknown("norm", norm, ["l1", "l2"]))
    above, distances = np.inf, []
    for _ in range(2 ** check_bits(bits) // 2):
        tail = np.exp(-above)
        if norm == "l1":
            below = np.log(2 - tail)
        else:
            rest = (1 + above) * tail if tail else 0.0
            below = 1 + lambertw(-rest / np.e).real
        distances.append(below)
        above = below
    d = np.array(
        distances[::-1]
    )  # d[i]: of value i, counted from 0, to its lower boundary and from that to value i - 1
    half = np.cumsum(d) + np.concatenate([[0.0], np.cumsum(d[1:])])
    values = np.concatenate([-half[::-1], half]) / np.sqrt(2)  # e^-|x| has a variance of 2
    return midpoints(values)


@lru_cache
def quantiles(bits: int) -> Codebook:
    """Cells of equal mass under N(0, 1), each with its median."""
    # v_i = Phi^-1((i + 1/2) / 2^b), r_i = Phi^-1((i + 1) / 2^b)
    k = 2 ** check_bits(bits)
    half, edges = ndtri(0.5 + (np.arange(k // 2) + 0.5) / k), ndtri(0.5 + np.arange(1, k // 2) / k)
    return Codebook(values=np.concatenate([-half[::-1], half]), boundaries=np.concatenate([-edges[::-1], [0.0], edges]))


@lru_cache
def normal_float(bits: int) -> Codebook:
    """NormalFloat of 2 to 8 bits (QLoRA, Dettmers et al. 2023, as its code makes NF4): from -1 to 1, with a 0.

    2^(b-1) values above 0 and one fewer below, each side quantiles of N(0, 1) evenly spaced in probability from 1/2 to
    1 - (1 / 2^(b+1) + 1 / (2^(b+1) - 2)) / 2, over the largest. At 1 bit that is {0, 1}: there is none.

    Raises
    ------
    QuantError
        If the bits are none of these.
    """
    if check_bits(bits) == 1:
        raise QuantError("expected bits from 2 to 8, found 1: below 0 there would be no value")
    k = 2**bits
    top = 1 - (1 / (2 * k) + 1 / (2 * k - 2)) / 2
    upper, lower = (ndtri(np.linspace(0.5, top, n + 1)) for n in (k // 2, k // 2 - 1))
    return midpoints(np.concatenate([-lower[:0:-1], upper]) / upper[-1])


def midpoints(values: np.ndarray | list[float]) -> Codebook:
    """The codebook of these ascending values whose cells hold what is nearest."""
    values = np.asarray(values, dtype=np.float64)
    return Codebook(values=values, boundaries=(values[:-1] + values[1:]) / 2)


def check_bits(bits: int) -> int:
    """The bits themselves, once they are known to be an integer from 1 to 8.

    Raises
    ------
    QuantError
        If they are not.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise QuantError(f"expected bits from 1 to 8, found {bits!r}")
    return bits


def _solve(k: int, norm: Norm) -> np.ndarray:
    """The k positive values of the optimum, by Newton on the stationarity of each; boundary 0 is fixed by symmetry.

    Raises
    ------
    AssertionError
        If Newton does not converge, which no input can cause.
    """
    # Panter and Dite: the optimal density of values goes as phi^(1/2) (L1) or phi^(1/3) (L2), again a normal one.
    v = np.sqrt(2.0 if norm == "l1" else 3.0) * ndtri(0.5 + (np.arange(k) + 0.5) / (2 * k))
    for _ in range(50):
        residual, band = _stationarity(v, norm)
        step = solve_banded((1, 1), band, residual)
        v = v - step
        if np.abs(step).max() < 1e-9:  # convergence is quadratic: what is left is rounding
            return v
    raise AssertionError(f"Newton did not converge for {2 * k} values in {norm}: a bug, tested for 1 to 8 bits")


def _stationarity(v: np.ndarray, norm: Norm) -> tuple[np.ndarray, np.ndarray]:
    """Residual F (k,) and its tridiagonal Jacobian (3, k) in banded form.

    L1: F_i = (P(r_{i-1}, v_i) - P(v_i, r_i)) / P(cell). L2: F_i = v_i - E[x | cell]. By quadrature inside a cell: the
    differences of Phi lose at 8 bits the digits that the small eigenvalues of the Jacobian need.
    """
    low = np.concatenate([[0.0], (v[:-1] + v[1:]) / 2])
    high = low[1:]  # of all cells but the outermost, which is open
    tail = ndtr(-low[-1])
    mass = np.append(_integral(low[:-1], high), tail)
    to_low, to_high = _phi(low), np.append(_phi(high), 0.0)
    if norm == "l1":
        above = np.append(_integral(v[:-1], high), ndtr(-v[-1]))
        residual = _integral(low, v) - above
        d_low, d_high, d_self = -to_low, -to_high, 2 * _phi(v)
    else:
        outer = to_low[-1] - v[-1] * tail
        residual = -np.append(_integral(low[:-1], high, v[:-1]), outer)
        d_low, d_high, d_self = (low - v) * to_low, -np.append(high - v[:-1], 0.0) * to_high, mass
    residual /= mass
    d_low, d_high = d_low + residual * to_low, d_high - residual * to_high  # the mass itself moves with the boundaries
    d_low[0] = 0.0  # the boundary at 0 stays
    band = np.zeros((3, v.size))
    band[1] = (d_self + (d_low + d_high) / 2) / mass
    band[0, 1:] = (d_high / 2 / mass)[:-1]
    band[2, :-1] = (d_low / 2 / mass)[1:]
    return residual, band


def _integral(a: np.ndarray, b: np.ndarray, centre: np.ndarray | None = None) -> np.ndarray:
    """Integral of phi(x), or of (x - centre) phi(x), from a to b for each entry."""
    x = (a + b)[:, None] / 2 + (b - a)[:, None] / 2 * _NODES
    f = _phi(x) if centre is None else (x - centre[:, None]) * _phi(x)
    return (b - a) / 2 * (f @ _WEIGHTS)


def _phi(x: np.ndarray) -> np.ndarray:
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
