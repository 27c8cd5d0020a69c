"""Points of a line or a plane, measured one by one: what surfaces, curves and their workers have in common.

The centre is evaluated once, at the untouched weights (NUMERICS 1). Every other point is written from the saved weights
(2), and all is put back bit for bit, also after an exception (3). A point's rows depend on the point alone.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch

from landscape.batchnorm import follow
from landscape.directions import Direction, cosine
from landscape.errors import LandscapeError
from landscape.evaluation import Evaluation
from landscape.guard import eval_mode
from landscape.objective import Objective
from landscape.precision import Probed, precision
from landscape.provenance import of_objective, of_space
from landscape.space import Space

Objectives = Objective | Mapping[str, Objective]
Point = tuple[float, ...]
Row = dict[str, Any]


class Probe:
    """Measures points ``centre + sum of coordinate * direction``; inside ``with`` only.

    It can be pickled, model and data with it, and measures the same in another process.

    Parameters
    ----------
    objectives
        One, or one a split; a single one is called ``data`` in the table.
    space, directions
        What moves, and where to: one direction for a line, two for a plane.
    names
        Columns of the coordinates, one a direction.

    Raises
    ------
    LandscapeError
        If there is no objective, or one is on another model than the space.
    """

    def __init__(
        self, objectives: Objectives, space: Space, directions: Sequence[Direction], names: Sequence[str]
    ) -> None:
        self.objectives = {"data": objectives} if isinstance(objectives, Objective) else dict(objectives)
        if not self.objectives:
            raise LandscapeError("expected at least one objective, found none")
        for split, objective in self.objectives.items():
            if objective.model is not space.model:
                raise LandscapeError(f"expected the objective {split!r} on the model of the space, found another model")
        self.space, self.directions, self.names = space, tuple(directions), tuple(names)
        self.centre: dict[str, Evaluation] = {}
        self.precision = Probed(precision="float32", tried=None, largest_change_nats=0.0, allowed_nats=0.0)
        self.passes = 0
        self.seconds = 0.0
        self._gram = [[d.dot(e) for e in self.directions] for d in self.directions]
        self._common = _common(space, self.directions)
        self._stack = ExitStack()
        self._depth = 0

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a ``with`` block, and with the data on the processor, where it can be sent from."""
        return {**self.__dict__, "_stack": None, "_depth": 0, "centre": {}, "passes": 0, "seconds": 0.0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _stack=ExitStack())

    def __enter__(self) -> Self:
        if self._depth == 0:
            with ExitStack() as stack:
                stack.enter_context(self.space)
                stack.enter_context(eval_mode(self.space.model))
                stack.enter_context(precision(self.space.model, self.precision.precision))
                self.follow()
                for split, objective in self.objectives.items():
                    self.passes += 1 if objective.checked else 2
                    at_centre = objective.evaluate() if objective.checked else objective.check_deterministic()
                    self.centre[split] = at_centre
                self._stack = stack.pop_all()
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._stack.close()

    def rows(self, point: Point) -> list[Row]:
        """One row a split: coordinates, loss, rise, accuracy, their standard errors, the three radii and the KL."""
        started = time.perf_counter()
        away = any(point)
        if away:
            self.space.move(self.directions, point)
            self.follow()
            self.passes += len(self.objectives)
        at = self.at(point)
        rows = []
        for split, objective in self.objectives.items():
            here = objective.evaluate() if away else self.centre[split]
            rows.append({**at, "split": split, **_row(here, self.centre[split])})
        self.seconds += time.perf_counter() - started
        return rows

    def follow(self) -> None:
        """Take running statistics anew where the weights are now, if the space is to."""
        self.passes += follow(self.space.batch_norm, next(iter(self.objectives.values())))

    def at(self, point: Point) -> Row:
        """The columns that need no pass over the data."""
        radius = self.space.effective_radius(self.directions, point, self._gram)
        return {**self._common, **dict(zip(self.names, point, strict=True)), "effective_radius": radius}

    def identity(self) -> dict[str, Any]:
        """What two parts of one table must have in common (NUMERICS 27), plain data."""
        model = self.space.model
        # Statistics that are taken anew follow from the rest.
        buffers = {} if self.space.batch_norm == "recalibrate" else dict(model.named_buffers())
        digest = hashlib.sha256()
        for name, tensor in {**dict(model.named_parameters()), **buffers, **self.space.centre}.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(_bytes(tensor))
        steps = hashlib.sha256()
        for direction in self.directions:
            for name, d in direction.tensors.items():
                steps.update(name.encode() + _bytes(d))
        fixed = {key: value for key, value in self._facts().items() if key != "objectives"}
        fixed["precision"] = self.precision.precision  # not the figures it was chosen by, which differ by the extent
        data = {
            split: {"fingerprint": o.fingerprint, "samples": o.n, "batch_size": o.batch_size, "loss": _loss(o.loss)}
            for split, o in self.objectives.items()
        }
        return {
            **fixed,
            "objectives": data,
            "model": _digest(repr(model)),
            "weights": digest.hexdigest(),
            "noise": steps.hexdigest(),
        }

    def provenance(self) -> dict[str, Any]:
        """What NUMERICS 28 asks a table to say, as plain data."""
        baseline = {
            split: {"loss_nats": e.mean_loss, "loss_se_nats": e.loss_se, "accuracy": e.accuracy}
            for split, e in self.centre.items()
        }
        return {
            "directions": [d.describe() for d in self.directions],
            "cosine": cosine(*self.directions) if len(self.directions) == 2 else None,
            **self._facts(),
            "baseline": baseline,
        }

    def _facts(self) -> dict[str, Any]:
        data = {split: of_objective(objective) for split, objective in self.objectives.items()}
        return {**of_space(self.space), "objectives": data, "precision": self.precision.facts()}


def _common(space: Space, directions: Sequence[Direction]) -> Row:
    first = directions[0]
    moving = first.moving
    if len(directions) > 1:
        second = directions[1]
        moving = sum(int(((d != 0) | (second.tensors[n] != 0)).sum()) for n, d in first.tensors.items())
    return {
        "space": space.kind,
        "head": space.head,
        "direction": -1 if first.seed is None else first.seed,
        "direction_norm": first.norm,
        "moving": moving,
        "moving_share": moving / space.total,
    }


def _row(here: Evaluation, centre: Evaluation) -> Row:
    rise, rise_se = here.rise_over(centre)
    logit_radius, kl = here.distance_from(centre)
    return {
        "loss_nats": here.mean_loss,
        "loss_se_nats": here.loss_se,
        "rise_nats": rise,
        "rise_se_nats": rise_se,
        "accuracy": here.accuracy,
        "accuracy_se": here.accuracy_se,
        "logit_radius": logit_radius,
        "kl_nats": kl,
        "samples": here.n,
        "nonfinite": here.nonfinite,
        "evaluated": True,
    }


def _loss(loss: object) -> str:
    """The loss by name and by what it does, as far as the same in another process."""
    if loss is None:
        return "cross entropy"
    code = getattr(loss, "__code__", None)
    does = repr(loss)
    if code is not None:
        kept = [cell.cell_contents for cell in getattr(loss, "__closure__", None) or ()]
        does = f"{code.co_code.hex()} {code.co_consts} {code.co_names} {kept} {getattr(loss, '__defaults__', None)}"
    return f"{getattr(loss, '__name__', type(loss).__name__)} {_digest(does)}"


def _digest(text: str) -> str:
    # Addresses differ from process to process.
    return hashlib.sha256(re.sub(r" at 0x[0-9a-fA-F]+", "", text).encode()).hexdigest()[:16]


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
