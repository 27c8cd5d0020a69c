"""The worst case in a ball by projected gradient ascent: APGD of Croce & Hein 2020 (arXiv:2003.01690, algorithm 1).

    z = P(x + eta s(x)),   x' = P(x + a (z - x) + (1 - a) (x - x_before)),   a = 0.75 (1 in the first step)

with P the projection onto the ball and s the ball's steepest move. eta starts at 2 and halves at checkpoints where too
few steps have gone up, or neither eta nor the best loss has changed since the last one; the search then goes on from
the best move, with the gradient *of that move* and no momentum. Departures: s is the steepest move of the ball at hand
(each filter its own length) where the paper has one norm; the first step counts as any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from landscape.estimate import Status
from landscape.sharpness._balls import Ball
from landscape.sharpness._meter import Meter, reached

Tensors = dict[str, Tensor]
MOMENTUM = 0.75
BROKEN_GRADIENT = "the gradient is inf or NaN"
_RISING = 0.75  # a stretch between checkpoints is good if this share of its steps went up


@dataclass
class Climb:
    """How one ascent went.

    Attributes
    ----------
    start
        What it started from.
    move, loss
        The best move found and its loss; the first whose loss is inf or NaN, where there is one.
    steps
        Each evaluation: number of the step, 0 at the start, loss in nats, and what else the method says of it.
    stopped
        Why it ended before its last step, or empty.
    settled
        Whether it ended because there was nothing more to gain.
    """

    start: str
    move: Tensors
    loss: float
    steps: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""
    settled: bool = False

    @property
    def residual(self) -> float:
        """How much the best loss rose in the last quarter of the steps, in nats; NaN for an ascent that broke."""
        if self.settled:
            return 0.0
        last = self.steps[-1]["step"] if self.steps else 0
        losses = [step["loss_nats"] for step in self.steps]
        before = [step["loss_nats"] for step in self.steps if step["step"] <= last - max(1, math.ceil(last / 4))]
        broken = self.stopped == BROKEN_GRADIENT or not all(map(math.isfinite, losses))
        return math.nan if broken or not before else max(losses) - max(before)

    def log(self) -> dict[str, Any]:
        """Plain data for the details of an estimate."""
        return {"start": self.start, "loss_nats": self.loss, "stopped": self.stopped, "steps": self.steps}


def ascend(meter: Meter, ball: Ball, start: Tensors, label: str, steps: int, rows: slice | None = None) -> Climb:
    """Climb the mean loss over some rows (default: all); arguments are those of :func:`climb`."""
    over = rows or slice(0, meter.objective.n)
    return climb(
        lambda move: meter.loss(move, over), lambda move: meter.gradient(move, rows), ball, start, label, steps
    )


def climb(
    loss: Callable[[Tensors], float],
    gradient: Callable[[Tensors], tuple[float, Tensors]],
    ball: Ball,
    start: Tensors,
    label: str,
    steps: int,
) -> Climb:
    """Climb from a move of the ball.

    Parameters
    ----------
    loss, gradient
        Mean loss at centre + move; the same with its gradient.
    ball
        Of the moves allowed.
    start, label
        A move of the ball, and what it is.
    steps
        Moves evaluated after the start, each with a gradient but the last.
    """
    x = before = start
    value, g = gradient(x)
    found = Climb(label, x, value, [{"step": 0, "loss_nats": value, "eta": 2.0}])
    best_g, eta = g, 2.0
    checkpoints = _checkpoints(steps)
    last, rises, eta_then, best_then = 0, 0, eta, value
    for step in range(1, steps + 1):
        if not math.isfinite(value):
            found.move, found.loss, found.stopped = x, value, "the loss is inf or NaN"
            break
        if not all(bool(torch.isfinite(d).all()) for d in g.values()):
            found.stopped = BROKEN_GRADIENT
            break
        steepest = ball.steepest(g)
        # z = P(x + eta s(x))
        z = ball.project({name: x[name] + eta * s for name, s in steepest.items()})
        a = 1.0 if step == 1 else MOMENTUM
        # x' = P(x + a (z - x) + (1 - a) (x - x_before))
        there = ball.project({n: x[n] + a * (z[n] - x[n]) + (1 - a) * (x[n] - before[n]) for n in x})
        x, before, previous = there, x, value
        value, g = gradient(x) if step < steps else (loss(x), g)
        found.steps.append({"step": step, "loss_nats": value, "eta": eta})
        rises += value > previous
        if value > found.loss:
            found.move, found.loss, best_g = x, value, g
        if step in checkpoints and step < steps and math.isfinite(value):
            slow = rises < _RISING * (step - last)
            stuck = eta == eta_then and found.loss == best_then
            last, rises, eta_then, best_then = step, 0, eta, found.loss
            if slow or stuck:
                eta /= 2
                x, before, value, g = found.move, found.move, found.loss, best_g
    if not math.isfinite(value):
        found.move, found.loss, found.stopped = x, value, "the loss is inf or NaN"
    return found


def from_centre(
    meter: Meter, ball: Ball, steps: int, restarts: int, seed: int, climber: Callable[..., Climb] = ascend
) -> list[Climb]:
    """Ascents from the centre and from the ball's random draws of seeds ``seed``, ``seed + 1``, ..."""
    climbs = [climber(meter, ball, ball.zero(), "centre", steps)]
    for number in range(seed, seed + restarts - 1):
        start = ball.scaled(ball.draw(number), ball.rho)
        climbs.append(climber(meter, ball, start, f"random draw, seed {number}", steps))
    return climbs


def worst(climbs: list[Climb]) -> Climb:
    """The climb that came highest; one whose loss is inf or NaN before all others."""
    broken = [c for c in climbs if not math.isfinite(c.loss)]
    return broken[0] if broken else max(climbs, key=lambda c: c.loss)


def judged(best: Climb, value: float, error: float) -> tuple[float, Status, dict[str, str]]:
    """The value, NaN where the ascent that came highest had no gradient to go on by; its status, and the reason."""
    if best.stopped == BROKEN_GRADIENT:
        return math.nan, "failed", {"reason": f"{BROKEN_GRADIENT} where the highest ascent stood"}
    return value, reached(value, best.residual, error), {}


def _checkpoints(steps: int) -> frozenset[int]:
    # p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06); after ceil(p_j steps) steps
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return frozenset(math.ceil(round(share * steps, 9)) for share in shares[1:])
