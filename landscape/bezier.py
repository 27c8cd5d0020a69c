"""A trained curve from one checkpoint to another, along which the loss stays low (Garipov et al. 2018).

Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs: two minima that a barrier separates on the straight line
are mostly connected by a bend with one control point.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from landscape.connectivity import Connection, bare, coefficients, connect, ends
from landscape.directions import Direction
from landscape.errors import LandscapeError
from landscape.gradient import gradient
from landscape.objective import Objective
from landscape.probe import Objectives
from landscape.space import Space
from landscape.surface import OnPoint
from landscape.trajectory import State


def bezier_curve(
    train: Objective,
    space: Space,
    other: State,
    points: int = 21,
    *,
    objectives: Objectives | None = None,
    degree: int = 2,
    steps: int = 200,
    lr: float = 0.05,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
    on_point: OnPoint | None = None,
) -> Connection:
    """A Bezier curve to another checkpoint, trained to have a low loss everywhere on it.

    Minimises the mean over alpha ~ U(0, 1) of the loss at phi(alpha) = sum_k b_k(alpha) P_k, where b_k are the
    Bernstein polynomials, over the control points between the ends (equations 1 and 3, and section 3.2). Departures:
    Adam with a step that falls as a cosine in place of SGD; batches are those of the objective, in a new order each
    epoch; the network is in eval mode, so BatchNorm's statistics stay those of the centre.

    Parameters
    ----------
    train
        What the curve is trained on.
    space, other, points
        As in :func:`landscape.connectivity.interpolate`.
    objectives
        What it is measured on afterwards; default: ``train``.
    degree
        2: one control point.
    steps, lr, seed
        Steps of a batch each; first step size, as a share of the root mean square difference between those weights of
        the ends that differ; of alpha and of the order of the batches.
    on_step
        Called with (steps done, loss of the batch at its alpha).
    on_point
        Called with (points done, points in all) when the curve is measured.

    Raises
    ------
    LandscapeError
        For a degree below 2, no steps, or a step size that is not positive; else as ``interpolate``.
    """
    if degree < 2 or steps < 1 or not lr > 0:
        raise LandscapeError(
            f"expected degree 2 or more, a step or more and a positive step size, found {degree}, {steps}, {lr}"
        )
    started = time.perf_counter()
    way = ends(space, other)
    line = way[0]
    # Even places on the straight line: there the curve is the line, whatever its degree.
    controls = [{name: d * (k / degree) for name, d in line.tensors.items()} for k in range(1, degree)]
    rms = line.norm / math.sqrt(line.moving)
    losses = _train(train, space, way, controls, steps, lr * rms, seed, on_step)
    if len(losses) < steps:
        warnings.warn(
            f"training the curve ended after {len(losses)} of {steps} steps: the loss was inf or NaN; lower lr",
            RuntimeWarning,
            stacklevel=2,
        )
    facts = {
        "degree": degree,
        "steps": steps,
        "lr": lr,
        "seed": seed,
        "trained_on": train.fingerprint,
        "losses": losses,
        "finished": len(losses) == steps,
        "training_seconds": time.perf_counter() - started,
    }
    trained = [bare(space, tensors, f"control {k}") for k, tensors in enumerate(controls, 1)]
    return connect(train if objectives is None else objectives, space, way, trained, points, facts, on_point)


def _train(
    objective: Objective,
    space: Space,
    way: Sequence[Direction],
    controls: Sequence[dict[str, Tensor]],
    steps: int,
    lr: float,
    seed: int,
    on_step: Callable[[int, float], None] | None,
) -> list[float]:
    """Train the control points in place; the loss of each step, fewer than asked for where one was not finite."""
    rng = np.random.default_rng(seed)
    flat = [[tensors[name] for name in space.names] for tensors in controls]
    adam = torch.optim.Adam([t for tensors in flat for t in tensors], lr=lr)
    batches: list[slice] = []
    losses: list[float] = []
    with space:
        if not objective.checked:
            objective.check_deterministic()
        for step in range(steps):
            alpha = float(rng.random())
            if not batches:
                batches = [objective.batches()[i] for i in rng.permutation(len(objective.batches()))]
            rows = batches.pop()
            at = coefficients(len(way), len(controls), alpha)
            space.move([*way, *(bare(space, c, "control") for c in controls)], at)
            loss, slope = gradient(objective, space, rows)
            if not math.isfinite(loss):
                break
            losses.append(loss)
            # A shorter last batch counts for its samples only.
            weight = (rows.stop - rows.start) * len(objective.batches()) / objective.n
            # dL(phi(alpha)) / dP_k = b_k(alpha) grad L(phi(alpha))
            for b, tensors in zip(at[len(way) :], flat, strict=True):
                for name, tensor in zip(space.names, tensors, strict=True):
                    tensor.grad = (weight * b * slope[name]).to(tensor.dtype)
            adam.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            adam.step()
            if on_step is not None:
                on_step(step + 1, loss)
    for tensors in flat:
        for tensor in tensors:
            tensor.grad = None
    return losses
