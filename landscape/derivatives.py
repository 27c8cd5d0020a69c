"""Do the gradient and the Hessian belong to the loss? They are compared with differences of the loss in float64.

Autograd can be wrong without a word: a kernel's second derivative, a hook on a parameter, an embedding that scales its
gradients. Differences of the loss see none of it. They do see the kinks of a ReLU, which autograd leaves out: they are
taken at two steps, which then disagree, and nothing is known.
"""

from __future__ import annotations

import copy
import math

from landscape.checks import Check, Outcome
from landscape.curvature.basis import norm
from landscape.curvature.hessian import Hessian
from landscape.directions import draw
from landscape.errors import LandscapeError
from landscape.gradient import gradient
from landscape.objective import Objective
from landscape.space import Space

STEPS = (1e-4, 1e-5)
"""Of the differences, in units of a filter-normalised direction."""
ALLOWED = 0.01
"""Share of a difference that its truncation explains."""
ROUNDING = 1e-4
"""Of the product of both lengths, which rounding in float32 explains where the value itself is a cancellation."""


def derivatives(objective: Objective, space: Space, *, seed: int = 0) -> list[Check]:
    """The slope and the bend along a random line, of autograd and of differences of the loss in a copy in float64.

    The outcome is ``pass`` where autograd agrees with the differences at one of the steps, ``fail`` where these agree
    with each other alone, and ``not known`` where they do not, or where one of the two cannot be had.
    """
    try:
        slope, bend = _by_autograd(objective, space, seed)
        slopes, bends = _by_differences(objective, space, seed)
    except (LandscapeError, RuntimeError, TypeError) as error:
        reason = f"cannot be compared: {' '.join(str(error).split())}"
        return [_check(name, "not known", math.nan, objective.unit, reason) for name in ("gradient", "curvature")]
    return [
        _compared("gradient", "slope", slope, slopes, objective.unit),
        _compared("curvature", "bend", bend, bends, objective.unit),
    ]


def _by_autograd(objective: Objective, space: Space, seed: int) -> tuple[tuple[float, float], tuple[float, float]]:
    # Of g'd and of d'Hd: the value, and the product of the lengths.
    with Hessian(objective, space) as hessian:
        d = hessian.flatten(draw(space, seed)).double()
        g = hessian.flatten(gradient(objective, space)[1]).double()
        image = hessian.product(d).double()
    return (float(g @ d), norm(g) * norm(d)), (float(d @ image), norm(image) * norm(d))


def _by_differences(objective: Objective, space: Space, seed: int) -> tuple[list[float], list[float]]:
    # Slopes and bends, one a step.
    model = copy.deepcopy(space.model).double()
    twin = objective.on(
        model, {name: x.double() if x.is_floating_point() else x for name, x in objective.inputs.items()}
    )
    moving = Space(model, space.names, kind=space.kind, policy=space.policy)
    direction = draw(moving, seed)
    slopes, bends = [], []
    with moving:
        centre = twin.evaluate().mean_loss
        for step in STEPS:
            moving.move(direction, step)
            ahead = twin.evaluate().mean_loss
            moving.move(direction, -step)
            behind = twin.evaluate().mean_loss
            slopes.append((ahead - behind) / (2 * step))
            bends.append((ahead - 2 * centre + behind) / step**2)
    return slopes, bends


def _compared(name: str, what: str, found: tuple[float, float], differences: list[float], unit: str) -> Check:
    value, lengths = found
    nearest = min(differences, key=lambda d: abs(d - value))
    said = " and ".join(f"{d:.6g}" for d in differences)
    meaning = f"{what} of the loss along a random line, {value:.6g}, against differences in float64, {said}"
    outcome: Outcome = "not known"
    if _agree(value, nearest, lengths):
        outcome = "pass"
    elif _agree(differences[0], differences[1], lengths):
        outcome = "fail"
    elif all(map(math.isfinite, differences)):
        meaning += ": the loss has kinks there"
    return _check(name, outcome, abs(value - nearest), unit, meaning)


def _agree(a: float, b: float, lengths: float) -> bool:
    return abs(a - b) <= ALLOWED * abs(b) + ROUNDING * lengths


def _check(name: str, outcome: Outcome, figure: float, unit: str, meaning: str) -> Check:
    return Check(check=name, outcome=outcome, figure=figure, unit=unit, meaning=meaning)
