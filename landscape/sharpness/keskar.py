"""Epsilon-sharpness of Keskar et al. 2017: the worst case in a small box around the weights, relative to the loss."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.estimate import Estimate
from landscape.objective import Objective
from landscape.sharpness._ascent import BROKEN_GRADIENT, Climb, Tensors, ascend, from_centre, judged, worst
from landscape.sharpness._balls import Box
from landscape.sharpness._meter import Meter, among, positive, whole
from landscape.space import Space

MEASURE, UNIT = "keskar_sharpness", "%"


def measure(
    objective: Objective,
    space: Space,
    *,
    epsilon: float = 1e-3,
    maximiser: str = "apgd",
    steps: int = 20,
    restarts: int = 2,
    error: float = 0.05,
    seed: int = 0,
) -> Estimate:
    """100 (max L(w + m) - L(w)) / (1 + L(w)) over the box |m_i| <= epsilon (|w_i| + 1), from below, in per cent.

    Source: Keskar et al. 2017 (arXiv:1609.04836, metric 2.1 with A the identity). Departures: what the space's policy
    holds still does not move (biases and norm gains, by default); they take ten iterations of L-BFGS-B from the centre,
    here the default is projected ascent from the centre and from random draws.

    Parameters
    ----------
    objective, space
        Whose loss rises, and what moves; weights of zero move too, by up to epsilon.
    epsilon
        Half the width of the box, as a share of |w_i| + 1.
    maximiser
        ``apgd``: projected ascent. ``lbfgsb``: that of scipy, in float64 on the processor, for models that fit there
        about twenty-five times.
    steps
        Of one ascent, a gradient each; L-BFGS-B takes some more to search along its lines.
    restarts
        Ascents in all: the first from the centre.
    error
        The ascent counts as converged when its best loss rose by at most this share of the whole rise in the last
        quarter of its steps (``residual``).

    Returns
    -------
    Estimate
        In per cent; the standard error is the paired one over samples of the rise at the move found, scaled alike.
        Details: the rise in nats, every step of each ascent.

    Wrong settings, and a space in which nothing may move, are a ``LandscapeError``.
    """
    positive("epsilon", epsilon)
    among("maximiser", maximiser, ("apgd", "lbfgsb"))
    whole("steps", steps)
    whole("restarts", restarts)
    ball = Box(space, epsilon, lambda w: w.abs() + 1, "box of |w| + 1")
    with Meter(objective, space) as meter:
        settings = {"epsilon": epsilon, "maximiser": maximiser, "restarts": restarts, "seed": seed}
        if meter.broken:
            return meter.estimate(MEASURE, UNIT, math.nan, details=settings)
        climbs = from_centre(meter, ball, steps, restarts, seed, ascend if maximiser == "apgd" else _lbfgsb)
        best = worst(climbs)
        here = meter.at(best.move)
        rise, se = here.rise_over(meter.centre)
        centre = meter.centre.mean_loss
        # 100 (max L - L) / (1 + L)
        scale = 100 / (1 + centre) if centre > -1 else math.nan
        rise, status, reason = judged(best, rise, error)
        if not centre > -1:
            status, reason = "failed", {"reason": f"1 + the centre's loss, {centre:.4g}, is not positive"}
        return meter.estimate(
            MEASURE,
            UNIT,
            scale * rise,
            se=scale * se,
            error_over="samples",
            status=status,
            residual=scale * best.residual,
            details={
                **settings,
                **reason,
                "found_from": best.start,
                "rise_nats": rise,
                "effective_radius": meter.radius(best.move),
                "accuracy": here.accuracy,
                "ascents": [c.log() for c in climbs],
            },
            draws=[scale * (c.loss - centre) for c in climbs],
        )


class _Broken(Exception):
    """A loss or a gradient on the way is inf or NaN: scipy would go on without saying so."""


def _lbfgsb(meter: Meter, ball: Box, start: Tensors, label: str, steps: int) -> Climb:
    """L-BFGS-B on minus the loss, in a vector of all entries that move."""
    from scipy.optimize import minimize

    found = Climb(label, start, -math.inf)
    bound = _vector(ball.bounds())
    iterations: list[object] = []

    def fun(vector: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        # scipy's bounds are those of float64: the nearest float32 may lie outside by its last bit.
        move = ball.project(_tensors(vector, start))
        loss, g = meter.gradient(move)
        found.steps.append({"step": len(iterations) + bool(found.steps), "loss_nats": loss})
        if not loss <= found.loss:
            found.move, found.loss = move, loss
        slope = _vector({name: g[name] for name in start})
        if not math.isfinite(loss) or not np.isfinite(slope).all():
            found.stopped = "the loss is inf or NaN" if not math.isfinite(loss) else BROKEN_GRADIENT
            raise _Broken
        return -loss, -slope

    try:
        result = minimize(
            fun, _vector(start), jac=True, method="L-BFGS-B", bounds=np.stack([-bound, bound], axis=1),
            callback=iterations.append, options={"maxiter": steps, "ftol": 0.0, "gtol": 0.0},
        )  # fmt: skip
        found.stopped, found.settled = str(result.message), bool(result.success)
    except _Broken:
        pass
    return found


def _vector(tensors: Tensors) -> NDArray[np.float64]:
    return torch.cat([x.detach().cpu().double().reshape(-1) for x in tensors.values()]).numpy()


def _tensors(vector: NDArray[np.float64], like: Tensors) -> Tensors:
    parts = torch.from_numpy(vector.copy()).split([x.numel() for x in like.values()])
    found: dict[str, Tensor] = {}
    for (name, x), part in zip(like.items(), parts, strict=True):
        found[name] = part.reshape(x.shape).to(x.device, x.dtype)
    return found
