"""Is a landscape of this model to be trusted? Checks of one objective and space, each with its figure.

Each check does what it checks, on this model and these data, and compares bits or standard errors. None is a proof; one
that fails is a reason not to print the surface.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from landscape.directions import draw
from landscape.errors import LandscapeError
from landscape.estimate import Estimate
from landscape.evaluation import Evaluation
from landscape.guard import same_bits
from landscape.objective import Objective
from landscape.probe import Probe
from landscape.space import Space

if TYPE_CHECKING:
    import pandas as pd

Outcome = Literal["pass", "fail", "not known"]
ROUNDING = 1e-4
"""Relative difference of two mean losses that float32 sums of another order explain."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check: what was asked, how it came out, the figure, and what it means."""

    check: str
    outcome: Outcome
    figure: float
    unit: str
    meaning: str

    def row(self) -> dict[str, object]:
        """Columns of a table."""
        return {name: getattr(self, name) for name in ("check", "outcome", "figure", "unit", "meaning")}


def to_frame(checks: Iterable[Check]) -> pd.DataFrame:
    """One row a check."""
    import pandas as pd

    return pd.DataFrame([check.row() for check in checks])


def examine(objective: Objective, space: Space, *, seed: int = 0, extent: float = 1.0) -> list[Check]:
    """All checks of one space; the model is as before afterwards.

    A model that is random in eval mode, and a space in which nothing moves, are a ``LandscapeError``.
    """
    before = {name: t.detach().clone() for name, t in _tensors(space).items()}
    direction = draw(space, seed)
    with Probe(objective, space, [direction], ["alpha"]) as probe:
        centre = probe.centre["data"]
        ends = [probe.rows((sign * extent,))[0] for sign in (1.0, -1.0)]
        again = [probe.rows((sign * extent,))[0] for sign in (-1.0, 1.0)][::-1]
        space.move([direction], [0.0])
        back = objective.evaluate()
        far = _at(objective, space, [direction], extent)
    return [
        _check("centre", np.array_equal(back.loss, centre.loss, equal_nan=True), _largest(back, centre), objective.unit,
               "largest change of a sample's loss after moving away and back to 0"),
        _check("order", repr(ends) == repr(again), max(abs(a["loss_nats"] - b["loss_nats"])
               for a, b in zip(ends, again, strict=True)), objective.unit,
               "change of the loss at both ends when they are measured in the other order"),
        _restored(objective, space, before, seed),
        _deterministic(objective),
        _batch_size(objective, centre),
        *_precisions(objective, space, centre, far, direction, extent),
        _check("share that moves", direction.moving > 0, direction.moving / space.total, "share",
               f"{direction.moving:,} of {space.total:,} parameters; held by the policy or zero: the others"),
        _check("finite", centre.nonfinite + far.nonfinite == 0, centre.nonfinite + far.nonfinite, "samples",
               f"samples whose loss is inf or NaN at the centre or at alpha {extent:g}"),
        _check("paired error", True, far.rise_over(centre)[1], objective.unit,
               f"standard error of the rise at alpha {extent:g}, paired over {centre.n} samples"),
    ]  # fmt: skip


def rescaled(
    measures: Mapping[str, Callable[[Space], Estimate]],
    space: Space,
    factors: Mapping[str, Tensor],
    objective: Objective,
) -> list[dict[str, object]]:
    """What a function-preserving rescale does to each measure: its value before and after.

    Parameters
    ----------
    measures
        Name -> function of a space; a measure may raise a ``LandscapeError``, its values are NaN then.
    space
        At whose centre the measures are taken.
    factors
        Tensor name -> factors, broadcast to its shape, that together leave the function as it is.
    objective
        By whose largest change of a per-sample loss it is seen that they do.

    Returns
    -------
    list of dict
        Columns measure, unit, before, after, ratio, change_of_loss_nats.

    Raises
    ------
    LandscapeError
        If a tensor is not the model's.
    """
    parameters = dict(space.model.named_parameters())
    for name in factors:
        if name not in parameters:
            raise LandscapeError(f"{name!r} is no parameter of the model")
    before, centre = {name: _value(measure, space) for name, measure in measures.items()}, objective.evaluate()
    with _scaled(parameters, factors):
        change = _largest(objective.evaluate(), centre)
        moved = Space(space.model, space.names, kind=space.kind, policy=space.policy, head=space.head)
        after = {name: _value(measure, moved) for name, measure in measures.items()}
    return [
        {
            "measure": name,
            "unit": before[name].unit,
            "before": before[name].value,
            "after": after[name].value,
            "ratio": after[name].value / before[name].value if before[name].value else math.nan,
            "change_of_loss_nats": change,
        }
        for name in measures
    ]


def _value(measure: Callable[[Space], Estimate], space: Space) -> Estimate:
    try:
        return measure(space)
    except LandscapeError as error:
        return Estimate(measure="", value=math.nan, unit="", status="failed", details={"reason": str(error)})


@contextmanager
def _scaled(parameters: Mapping[str, Tensor], factors: Mapping[str, Tensor]):
    saved = {name: parameters[name].detach().clone() for name in factors}
    try:
        with torch.no_grad():
            for name, factor in factors.items():
                parameters[name].mul_(factor)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in saved.items():
                parameters[name].copy_(tensor)


def _restored(objective: Objective, space: Space, before: Mapping[str, Tensor], seed: int) -> Check:
    class Stop(Exception):
        pass

    try:
        with space:
            space.move([draw(space, seed)], [0.5])
            raise Stop
    except Stop:
        pass
    changed = [name for name, tensor in _tensors(space).items() if not same_bits(tensor.detach(), before[name])]
    said = f"; the first: {changed[0]}" if changed else ""
    return _check("restore", not changed, len(changed), "tensors", f"not bit-equal after an exception midway{said}")


def _deterministic(objective: Objective) -> Check:
    first, second = objective.evaluate(), objective.evaluate()
    same = np.array_equal(first.loss, second.loss, equal_nan=True)
    return _check(
        "determinism", same, _largest(first, second), objective.unit, "largest change of a loss between two passes"
    )


def _batch_size(objective: Objective, centre: Evaluation) -> Check:
    size = objective.batch_size
    try:
        objective.batch_size = 7
        other = objective.evaluate().mean_loss
    finally:
        objective.batch_size = size
    change = abs(other - centre.mean_loss) / max(abs(centre.mean_loss), 1e-12)
    meaning = f"change of the mean loss, batches of 7 for {size}"
    return _check("batch size", change < ROUNDING, change, "relative", meaning)


def _precisions(
    objective: Objective, space: Space, centre: Evaluation, far: Evaluation, direction, extent: float
) -> list[Check]:
    # Rule 15: a change below a quarter of the paired standard error at the centre and far out.
    limit = 0.25 * far.rise_over(centre)[1]
    checks = []
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        try:
            # No cache: it would hold the weights of the centre for the moved point.
            with space, torch.autocast(objective.device.type, dtype=dtype, cache_enabled=False):
                changes = [abs(objective.evaluate().mean_loss - centre.mean_loss)]
                space.move([direction], [extent])
                changes.append(abs(objective.evaluate().mean_loss - far.mean_loss))
        except (RuntimeError, LandscapeError) as error:
            reason = " ".join(str(error).split())
            checks.append(Check(check=f"{name} for float32", outcome="not known", figure=math.nan, unit=objective.unit,
                                meaning=f"cannot be evaluated: {reason}"))  # fmt: skip
            continue
        meaning = f"change of the loss against float32; allowed: a quarter of the paired error, {limit:.2g}"
        # That a model needs float32 is no fault of its landscape: it is measured in float32.
        checks.append(Check(check=f"{name} for float32", outcome="pass" if max(changes) < limit else "not known",
                            figure=max(changes), unit=objective.unit, meaning=meaning))  # fmt: skip
    return checks


def _at(objective: Objective, space: Space, directions, alpha: float) -> Evaluation:
    space.move(directions, [alpha])
    return objective.evaluate()


def _tensors(space: Space) -> dict[str, Tensor]:
    return {**dict(space.model.named_parameters()), **dict(space.model.named_buffers())}


def _largest(a: Evaluation, b: Evaluation) -> float:
    with np.errstate(invalid="ignore"):
        change = np.abs(a.loss - b.loss)
    return float(np.nanmax(change)) if not np.isnan(change).all() else math.nan


def _check(name: str, passed: bool, figure: float, unit: str, meaning: str) -> Check:
    return Check(check=name, outcome="pass" if passed else "fail", figure=float(figure), unit=unit, meaning=meaning)
