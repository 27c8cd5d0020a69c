"""Do the gradient and the Hessian belong to the loss? They are compared with differences of the loss in float64.

Autograd can be wrong without a word: a kernel's second derivative, a hook on a parameter, an embedding that scales its
gradients. The differences see none of it; in float64 their step is so small that they hardly cross a kink of a ReLU.
"""

from __future__ import annotations

import copy
import math

import torch

from landscape.checks import Check, Outcome
from landscape.curvature.basis import norm
from landscape.curvature.hessian import Hessian
from landscape.directions import draw
from landscape.errors import LandscapeError
from landscape.gradient import gradient
from landscape.objective import Objective
from landscape.space import Space

STEP = 1e-4
"""Of the differences, in units of a filter-normalised direction."""
ALLOWED = 0.01
"""Of the difference."""
ROUNDING = 1e-4
"""Of the product of both lengths, which rounding in float32 explains where the value itself is a cancellation."""


def derivatives(objective: Objective, space: Space, *, seed: int = 0) -> list[Check]:
    """The slope and the bend along a random line, of autograd and of differences of the loss in a copy in float64.

    Where one of the two cannot be had, such as for weights that are quantised again, the outcome is ``not known``.
    """
    try:
        slope, bend = _by_autograd(objective, space, seed)
        exact_slope, exact_bend = _by_differences(objective, space, seed)
    except (LandscapeError, RuntimeError, TypeError) as error:
        reason = f"cannot be compared: {' '.join(str(error).split())}"
        return [_check(name, "not known", math.nan, reason) for name in ("gradient", "curvature")]
    return [
        _compared("gradient", "slope", slope, exact_slope),
        _compared("curvature", "bend", bend, exact_bend),
    ]


def _by_autograd(objective: Objective, space: Space, seed: int) -> tuple[tuple[float, float], tuple[float, float]]:
    # Of g'd and of d'Hd: the value, and the product of the lengths.
    with Hessian(objective, space) as hessian:
        d = hessian.flatten(draw(space, seed)).double()
        g = hessian.flatten(gradient(objective, space)[1]).double()
        image = hessian.product(d).double()
    return (float(g @ d), norm(g) * norm(d)), (float(d @ image), norm(image) * norm(d))


def _by_differences(objective: Objective, space: Space, seed: int) -> tuple[float, float]:
    model = copy.deepcopy(space.model).double()
    data = {name: x.double() if x.is_floating_point() else x for name, x in objective.inputs.items()}
    twin = objective.on(model, data)
    moving = Space(model, space.names, kind=space.kind, policy=space.policy)
    with moving, torch.no_grad():
        losses = []
        for alpha in (-STEP, 0.0, STEP):
            moving.move(draw(moving, seed), alpha)
            losses.append(twin.evaluate().mean_loss)
    low, centre, high = losses
    return (high - low) / (2 * STEP), (low - 2 * centre + high) / STEP**2


def _compared(name: str, what: str, found: tuple[float, float], exact: float) -> Check:
    value, lengths = found
    change = abs(value - exact)
    right = change <= ALLOWED * abs(exact) + ROUNDING * lengths
    meaning = f"{what} of the loss along a random line, {value:.6g}, against {exact:.6g} by differences in float64"
    return _check(name, "pass" if right else "fail", change, meaning)


def _check(name: str, outcome: Outcome, figure: float, meaning: str) -> Check:
    return Check(check=name, outcome=outcome, figure=figure, unit="nats", meaning=meaning)
