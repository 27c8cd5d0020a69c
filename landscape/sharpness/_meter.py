"""What all measures share: the exact centre, moves from the saved weights, what was spent, and what a table must say.

Everything happens inside ``with Meter(...)``: eval mode, and all put back bit for bit afterwards (NUMERICS 1 to 4).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from numbers import Integral, Real
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.batchnorm import follow
from landscape.directions import Direction
from landscape.errors import LandscapeError, nearest
from landscape.estimate import Estimate, Status
from landscape.evaluation import Evaluation
from landscape.gradient import gradient
from landscape.guard import eval_mode, random_states
from landscape.objective import Objective
from landscape.provenance import of_objective, of_space
from landscape.space import Space

Tensors = dict[str, Tensor]


class Meter:
    """Losses, accuracies and gradients at moves from a space's centre, counted.

    Parameters
    ----------
    objective, space
        On one model.

    Raises
    ------
    LandscapeError
        If the objective is on another model than the space, or gives two values in eval mode.
    """

    def __init__(self, objective: Objective, space: Space) -> None:
        if objective.model is not space.model:
            raise LandscapeError("expected the objective on the model of the space, found another model")
        self.objective, self.space = objective, space
        self.forwards = self.gradients = 0.0
        self.nonfinite_points = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        with ExitStack() as stack:
            stack.enter_context(self.space)
            stack.enter_context(eval_mode(self.space.model))
            self.forwards += follow(self.space.batch_norm, self.objective)
            self.forwards += 1 if self.objective.checked else 2
            checked = self.objective.checked
            self.centre = self.objective.evaluate() if checked else self.objective.check_deterministic()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def broken(self) -> bool:
        """Whether the loss at the centre is inf or NaN, so that nothing can be compared with it."""
        return not math.isfinite(self.centre.mean_loss)

    def at(self, move: Direction | Mapping[str, Tensor], coefficient: float = 1.0) -> Evaluation:
        """One pass over all data at centre + coefficient * move; a coefficient of 0 is the centre's own evaluation."""
        if coefficient == 0:
            return self.centre
        self.space.move(self.direction(move), coefficient)
        self.forwards += 1 + follow(self.space.batch_norm, self.objective)
        found = self.objective.evaluate()
        self.nonfinite_points += found.nonfinite > 0
        return found

    def loss(self, move: Mapping[str, Tensor], rows: slice) -> float:
        """Mean loss over some rows at centre + move, in one pass without gradients."""
        objective = self.objective
        self.space.move(self.direction(move), 1.0)
        self.forwards += (rows.stop - rows.start) / objective.n

        def of_rows() -> list[NDArray[np.float64]]:
            batches = objective.batches(rows)
            return [objective.losses(objective.logits(b), b).cpu().double().numpy() for b in batches]

        with random_states(self.space.model), torch.no_grad():
            losses = np.concatenate(objective.in_memory(of_rows))
        self.nonfinite_points += not np.isfinite(losses).all()
        return mean_and_error(losses)[0]

    def gradient(self, move: Mapping[str, Tensor], rows: slice | None = None) -> tuple[float, Tensors]:
        """Mean loss over some rows (default: all) at centre + move, and its gradient in the dtype that moves have."""
        self.space.move(self.direction(move), 1.0)
        self.gradients += 1 if rows is None else (rows.stop - rows.start) / self.objective.n
        loss, found = gradient(self.objective, self.space, rows)
        self.nonfinite_points += not (math.isfinite(loss) and all(bool(g.isfinite().all()) for g in found.values()))
        return loss, found

    def direction(self, move: Direction | Mapping[str, Tensor]) -> Direction:
        """A move as a direction of the space."""
        if isinstance(move, Direction):
            return move
        return Direction(tensors=move, seed=None, normalisation="ascent", policy=self.space.policy)

    def radius(self, move: Direction | Mapping[str, Tensor], coefficient: float = 1.0) -> float:
        """||move||_F over the norm of the same tensors (NUMERICS 12)."""
        direction = self.direction(move)
        return self.space.effective_radius(direction, coefficient) if direction.moved else 0.0

    def estimate(
        self,
        measure: str,
        unit: str,
        value: float,
        *,
        details: Mapping[str, Any],
        status: Status = "exact",
        se: float = math.nan,
        error_over: str = "",
        residual: float = math.nan,
        draws: Sequence[float] = (),
    ) -> Estimate:
        """The result, with its cost and what NUMERICS 28 asks a table to say; ``diverged`` at a broken centre."""
        if self.nonfinite_points or self.broken:
            on_the_way = f"losses or gradients at {self.nonfinite_points} points on the way are"
            where = "the centre's loss is" if self.broken else on_the_way
            warnings.warn(f"{measure}: {where} inf or NaN; they stay so", RuntimeWarning, stacklevel=3)
        return Estimate(
            measure=measure,
            value=math.nan if self.broken else value,
            unit=unit,
            se=se,
            error_over=error_over,
            status="diverged" if self.broken else status,
            residual=residual,
            cost={
                "forwards": self.forwards,
                "gradients": self.gradients,
                "seconds": time.perf_counter() - self._started,
            },
            details={**details, "nonfinite_points": self.nonfinite_points, **self._facts()},
            draws=tuple(draws),
        )

    def _facts(self) -> dict[str, Any]:
        centre = self.centre
        baseline = {"loss_nats": centre.mean_loss, "loss_se_nats": centre.loss_se, "accuracy": centre.accuracy}
        return {"baseline": baseline, **of_space(self.space), "data": of_objective(self.objective)}


def mean_and_error(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """Mean and its standard error; the error is NaN for one value, and where a value is inf or NaN."""
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        return math.nan, math.nan
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, and is meant to be
        mean = float(numbers.sum() / len(numbers))
    if len(numbers) < 2 or not np.isfinite(numbers).all():
        return mean, math.nan
    return mean, float(numbers.std(ddof=1) / math.sqrt(len(numbers)))


def reached(value: float, error: float, share: float) -> Status:
    """``converged`` when the error is at most a share of the value, ``diverged`` when that is inf or NaN."""
    if not math.isfinite(value):
        return "diverged"
    return "converged" if error <= share * abs(value) else "budget"


def positive(name: str, value: float) -> None:
    """Refuse a setting that is not a positive finite number.

    Raises
    ------
    LandscapeError
        With the setting's name and what was found.
    """
    if not (isinstance(value, Real) and math.isfinite(value) and value > 0):
        raise LandscapeError(f"expected {name} to be positive and finite, found {value!r}")


def among(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a setting that is none of those there are.

    Raises
    ------
    LandscapeError
        With the setting's name, what was found and the nearest that there is.
    """
    if value not in allowed:
        raise LandscapeError(f"expected {name} among {', '.join(allowed)}, found {value!r}{nearest(value, allowed)}")


def whole(name: str, value: int, least: int = 1) -> None:
    """Refuse a setting that is not a whole number of at least ``least``.

    Raises
    ------
    LandscapeError
        With the setting's name and what was found.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise LandscapeError(f"expected {name} to be a whole number of at least {least}, found {value!r}")
