"""How Gaussian the weights of a matrix are, as effect sizes: fits, distances, what the Gaussian codebook loses.

Tests reject any model of 25,000 weights, so nothing here is a p-value. Read each figure beside the same figure of truly
normal samples (:func:`w1_null`) and of the same matrix at its initialisation (:func:`trained_share`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import betaln, gammaln, ndtr, ndtri

from quant.errors import QuantError

LAWS = ("normal", "laplace", "student_t", "generalised_normal", "logistic")


def fit_laws(w: np.ndarray) -> dict[str, list[Any]]:
    """Five laws fitted to the weights by maximum likelihood, best AIC first; ``pandas.DataFrame`` takes the result.

    Columns: ``law``, ``aic``, ``delta_aic`` (to the best), ``log_likelihood_nats``, ``parameters`` (count),
    ``location``, ``scale``, ``shape`` (degrees of freedom of Student's t, at most 1e4; exponent of the generalised
    normal, .2 to 50; else NaN). The weights count as independent, which they are not: differences of AIC are nominal.

    Raises
    ------
    QuantError
        If the weights are not finite or fewer than two distinct values.
    """
    x = _flat(w)
    if x[0] == x[-1]:
        raise QuantError(f"expected at least two distinct weights, found {x.size} times {x[0]:.4g}")
    centre, unit = float(x.mean()), float(x.std())
    z = (x - centre) / unit
    median = float(np.median(z))
    spread = float(np.abs(z - median).mean())
    fits = {
        "normal": (0.0, 1.0, math.nan, 0.5 * math.log(2 * math.pi) + 0.5),
        "laplace": (median, spread, math.nan, math.log(2 * spread) + 1),
        "logistic": _maximise(_logistic, z, (median, math.sqrt(3) / math.pi)),
        "student_t": _maximise(_student_t, z, (median, 0.8, 6.0), (0.1, 1e4)),
        "generalised_normal": _maximise(_generalised_normal, z, (median, math.sqrt(2), 2.0), (0.2, 50.0)),
    }
    likelihoods = {law: -x.size * (loss + math.log(unit)) for law, (_, _, _, loss) in fits.items()}
    counts = {law: 2 if math.isnan(shape) else 3 for law, (_, _, shape, _) in fits.items()}
    aic = {law: 2 * counts[law] - 2 * likelihoods[law] for law in fits}
    laws = sorted(fits, key=lambda law: aic[law])
    return {
        "law": laws,
        "aic": [aic[law] for law in laws],
        "delta_aic": [aic[law] - aic[laws[0]] for law in laws],
        "log_likelihood_nats": [likelihoods[law] for law in laws],
        "parameters": [counts[law] for law in laws],
        "location": [centre + unit * fits[law][0] for law in laws],
        "scale": [unit * fits[law][1] for law in laws],
        "shape": [fits[law][2] for law in laws],
    }


def best_law(w: np.ndarray) -> str:
    """The law of :func:`fit_laws` with the least AIC."""
    return fit_laws(w)["law"][0]


def w1_to_normal(w: np.ndarray) -> float:
    """Wasserstein-1 distance of the weights to the normal of their mean and standard deviation, in units of the latter.

    Exact: the integral over u of |F^-1(u) - Phi^-1(u)|, in closed form between the jumps of F. NaN for a constant.
    """
    x = _flat(w)
    if x[0] == x[-1]:
        return math.nan
    z = (x - x.mean()) / x.std(ddof=1)
    u = np.arange(x.size + 1) / x.size
    low, high = u[:-1], u[1:]
    cross = np.clip(ndtr(z), low, high)  # where the quantile of the normal passes z within the step
    # the integral of Phi^-1 from a to b is phi(Phi^-1(a)) - phi(Phi^-1(b))
    at_low, at_cross, at_high = _phi_of_quantile(low), _phi_of_quantile(cross), _phi_of_quantile(high)
    below = z * (cross - low) - (at_low - at_cross)
    above = (at_cross - at_high) - z * (high - cross)
    return float((below + above).sum())


@functools.cache
def w1_null(n: int, *, seed: int, draws: int = 20) -> float:
    """The mean of :func:`w1_to_normal` over truly normal samples of n weights: what distance says nothing."""
    rng = np.random.default_rng(seed)
    return float(np.mean([w1_to_normal(rng.standard_normal(n)) for _ in range(draws)]))


def distortion_ratio(w: np.ndarray, bits: int) -> float:
    """Absolute error of the Gaussian L1 codebook over that of the best 2^bits values for these weights; at least 1.

    The best values are exact (k-medians in one dimension). NaN below 20 * 2^bits weights, where they would fit noise,
    and where the weights have no more than 2^bits distinct values.
    """
    import torch

    from quant.quantizers import get

    x = _flat(w)
    if x.size < 20 * 2**bits or np.unique(x).size <= 2**bits:
        return math.nan
    tensor = torch.from_numpy(x)
    grid = get("gaussian_l1", bits).fit(tensor)
    error = float((tensor - grid.values(grid.codes(tensor))).abs().sum())
    return error / k_medians_error(x, 2**bits)


@functools.cache
def distortion_ratio_null(n: int, bits: int, *, seed: int, draws: int = 20) -> float:
    """The mean of :func:`distortion_ratio` over truly normal samples of n weights.

    The best values are fitted to the very weights they are judged on, so a perfectly normal matrix lies above 1 too: by
    a twentieth at 1,536 weights and 4 bits.
    """
    rng = np.random.default_rng(seed)
    return float(np.mean([distortion_ratio(rng.standard_normal(n), bits) for _ in range(draws)]))


def trained_share(w: np.ndarray, w_init: np.ndarray) -> float:
    """Share of the variance that training moved: Var(D) / (Var(D) + Var(w_init)) with D = w - w_init; from 0 to 1.

    Were D independent of the initialisation, the denominator would be Var(w). 0: nothing moved, or all by one shift.
    1: all of the variance came by training, as from an initialisation of zeros.

    Raises
    ------
    QuantError
        If the two differ in shape.
    """
    w, w_init = np.asarray(w, dtype=np.float64), np.asarray(w_init, dtype=np.float64)
    if w.shape != w_init.shape:
        raise QuantError(f"expected initial weights of shape {w.shape}, found {w_init.shape}")
    moved, initial = float(np.var(w - w_init)), float(np.var(w_init))
    return moved / (moved + initial) if moved > 0 else 0.0


def k_medians_error(x: np.ndarray, k: int) -> float:
    """The least sum of |x - q| over all sets of at most k values q, exact, by k-medians with every place."""
    from quant.quantizers._clusters import Runs, layer

    runs = Runs(np.sort(np.asarray(x, dtype=np.float64).ravel()), "l1")
    ends = np.arange(runs.x.size + 1)
    best = runs.cost(np.zeros_like(ends), ends)
    for _ in range(k - 2):
        best, _ = layer(best, runs.cost)
    return float(best[-1] if k == 1 else (best + runs.cost(ends, np.full_like(ends, ends[-1]))).min())


def _maximise(
    loss: Callable[..., float], z: np.ndarray, start: tuple[float, ...], shapes: tuple[float, float] | None = None
) -> tuple[float, float, float, float]:
    """Location, scale, shape (NaN without one) and the least mean negative log-likelihood."""
    bounds = [(-3.0, 3.0), (-7.0, 3.0)] + ([(math.log(shapes[0]), math.log(shapes[1]))] if shapes else [])
    x0 = [start[0], *(math.log(p) for p in start[1:])]  # scale and shape are searched as logs
    found = minimize(
        lambda p: loss(z, p[0], *np.exp(p[1:])),
        x0,
        method="Nelder-Mead",  # the generalised normal is not smooth in its location
        bounds=bounds,
        options={"xatol": 1e-5, "fatol": 1e-10, "maxiter": 1000},
    )
    shape = math.exp(found.x[2]) if shapes else math.nan
    return float(found.x[0]), math.exp(found.x[1]), shape, float(found.fun)


def _logistic(z: np.ndarray, location: float, scale: float) -> float:
    y = np.abs(z - location) / scale
    return float((y + 2 * np.log1p(np.exp(-y))).mean() + math.log(scale))


def _student_t(z: np.ndarray, location: float, scale: float, df: float) -> float:
    tails = np.log1p(((z - location) / scale) ** 2 / df).mean()
    return float((df + 1) / 2 * tails + math.log(scale) + 0.5 * math.log(df) + betaln(df / 2, 0.5))


def _generalised_normal(z: np.ndarray, location: float, scale: float, beta: float) -> float:
    with np.errstate(
        over="ignore"
    ):  # a far outlier under a large exponent: infinitely unlikely, and the search turns back
        tails = (np.abs(z - location) / scale) ** beta
    return float(tails.mean() + math.log(2 * scale / beta) + gammaln(1 / beta))


def _phi_of_quantile(u: np.ndarray) -> np.ndarray:
    return np.exp(-(ndtri(u) ** 2) / 2) / math.sqrt(2 * math.pi)


def _flat(w: np.ndarray) -> np.ndarray:
    """The weights sorted, float64.

    Raises
    ------
    QuantError
        If there are fewer than two, or one is not finite.
    """
    x = np.sort(np.asarray(w, dtype=np.float64).ravel())
    if x.size < 2 or not np.isfinite(x[[0, -1]]).all():  # NaN sorts last
        bad = int((~np.isfinite(x)).sum())
        raise QuantError(f"expected at least two weights, all finite, found {x.size}, {bad} of them not finite")
    return x
