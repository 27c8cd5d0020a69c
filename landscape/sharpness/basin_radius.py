"""Mean log radius of the basin below a loss threshold, along random rays: a lower bound of the basin's log volume."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from landscape.directions import Direction
from landscape.errors import LandscapeError
from landscape.estimate import Estimate
from landscape.normalisation import gaussian
from landscape.objective import Objective
from landscape.sharpness._balls import filters, like
from landscape.sharpness._crossing import enclose
from landscape.sharpness._meter import Meter, mean_and_error, positive, whole
from landscape.space import Space

MEASURE, UNIT = "basin_log_radius", "log alpha"


def measure(
    objective: Objective,
    space: Space,
    *,
    rise: float = 0.1,
    rays: int = 16,
    start: float = 0.1,
    largest: float = 10.0,
    tolerance: float = 0.02,
    seed: int = 0,
) -> Estimate:
    """E_u[log r(u)], r(u) being the first alpha at which L(w + alpha u) > L(w) + rise, over random rays u.

    Rays are uniform on the sphere of the coordinates in which filter i is divided by ||w_i|| / sqrt(n_i), its root mean
    square: Gaussian noise with the filters' scales, and the length sqrt(k) there, k entries moving. Nearly a
    filter-normalised direction, so that alpha means the same, but exactly uniform, which a volume needs:

        log Vol(basin) - log Vol(ellipsoid of alpha <= 1) = log E[r^k] >= k E[log r]   (Jensen)

    This is a lower bound, and a loose one: E[r^k] is carried by rays too rare to be drawn at k in the thousands
    (NUMERICS 21). The part of the basin counted is that seen from w along straight rays.

    A radius is enclosed by doubling or halving from ``start``, then by bisection of its logarithm; the inner end
    counts. A crossing between two neighbours of the radii evaluated that is crossed back before the next one is not
    seen: the loss is assumed to cross the threshold once in between. Rays that never cross count with ``largest``,
    which keeps the bound, and are ``censored`` in the details.

    Parameters
    ----------
    objective, space
        Whose basin, and what moves.
    rise
        Threshold above the loss at the centre, in nats; a loss that is NaN or inf is beyond it.
    rays
        K rays; their seeds are ``seed``, ..., ``seed + K - 1``.
    start, largest
        First radius tried on a ray, and the last.
    tolerance
        A bracket ends when its outer end is at most (1 + tolerance) times its inner.

    Returns
    -------
    Estimate
        The mean of the natural logarithm of alpha, standard error over rays, ``draws`` (K,); ``residual``: how much
        the brackets leave open, upwards. ``budget`` where some rays are censored, ``failed`` where all are, or where
        the threshold is passed however small the step: ``reason`` in the details.

    Raises
    ------
    LandscapeError
        For wrong settings, or if nothing may move.
    """
    for name, value in {"rise": rise, "start": start, "largest": largest, "tolerance": tolerance}.items():
        positive(name, value)
    whole("rays", rays)
    if not start <= largest:
        raise LandscapeError(f"expected start to be at most largest={largest:g}, found {start:g}")
    logs, gaps, censored, k = [], [], 0, 0
    with Meter(objective, space) as meter:
        threshold = meter.centre.mean_loss + rise
        for i in range(0 if meter.broken else rays):
            ray, k = _ray(space, seed + i)
            found = enclose(_beyond(meter, ray, threshold), start, largest, tolerance)
            censored += found is None
            inner, outer = found or (largest, largest)
            logs.append(math.log(inner) if inner > 0 else -math.inf)
            gaps.append(math.log(outer / inner) if inner > 0 else math.inf)
        value, se = mean_and_error(logs)
        details = {
            "rise_nats": rise,
            "threshold_nats": threshold,
            "rays": rays,
            "seed": seed,
            "tolerance": tolerance,
            "bound": "lower",
            "censored": censored,
            "largest": largest,
            "entries": k,
            # log Vol(basin) - log Vol(ellipsoid of alpha <= 1) >= k E[log r]
            "log_volume_ratio_at_least": k * value,
            "log_volume_ratio_se": k * se,
        }
        if censored == rays:
            details["reason"] = f"the loss stays below the threshold up to alpha {largest:g} along every ray"
        elif -math.inf in logs:
            details["reason"] = f"the loss is above the threshold however near, along {logs.count(-math.inf)} rays"
        return meter.estimate(
            MEASURE,
            UNIT,
            value,
            se=se,
            error_over="rays",
            status="failed" if "reason" in details else "budget" if censored else "converged",
            residual=mean_and_error(gaps)[0],
            details=details,
            draws=logs,
        )


def _beyond(meter: Meter, ray: Direction, threshold: float) -> Callable[[float], bool]:
    # Not ">": a loss that is NaN is beyond.
    return lambda alpha: not meter.at(ray, alpha).mean_loss <= threshold


def _ray(space: Space, seed: int) -> tuple[Direction, int]:
    """A ray of alpha 1, and the number of entries that move.

    Raises
    ------
    LandscapeError
        If there are none.
    """
    found, squares, entries = {}, 0.0, 0
    for name, centre in space.centre.items():
        if space.held(name):
            continue
        rows = filters(space, name, centre.cpu().double())
        # s_i = ||w_i|| / sqrt(n_i)
        scale = rows.norm(dim=1, keepdim=True) / max(rows.shape[1], 1) ** 0.5
        z = torch.where(scale > 0, filters(space, name, gaussian(seed, name, centre)), 0.0)
        squares += float((z * z).sum())
        entries += int((scale > 0).sum()) * rows.shape[1]
        found[name] = (scale * z).reshape(centre.shape)
    if not entries:
        raise LandscapeError(
            f"nothing moves: policy bias_and_norm={space.policy.bias_and_norm!r} holds still or finds zero all "
            f"{len(space.names)} tensors of the space"
        )
    # u = s z sqrt(k) / ||z||
    length = (entries / squares) ** 0.5
    tensors = {name: like(u * length, space.centre[name]) for name, u in found.items()}
    return Direction(tensors=tensors, seed=seed, normalisation="sphere", policy=space.policy), entries
