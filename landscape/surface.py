"""Loss along a line and over a plane in weight space.

The centre is evaluated once, at the untouched weights, and its row is that evaluation (NUMERICS 1). Every other point
is written from the saved weights (2), and all is put back bit for bit, also after an exception (3).
"""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from landscape.directions import Direction, cosine
from landscape.errors import LandscapeError
from landscape.evaluation import Evaluation
from landscape.guard import eval_mode
from landscape.objective import Objective
from landscape.radius import reach, rise_at
from landscape.space import Space

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Curve", "Surface", "grid", "line", "plane", "reach", "rise_at"]

Objectives = Objective | Mapping[str, Objective]
OnPoint = Callable[[int, int], None]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Points:
    """Rows of measured points, and how they came about."""

    rows: tuple[dict[str, Any], ...]
    provenance: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row a point and split; units in the column names."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>" + self.to_frame().to_html(index=False, max_rows=20)

    def _chosen(self, column: str, split: str | None) -> Floats:
        splits = list(self.provenance["objectives"])
        name = splits[0] if split is None else split
        if name not in splits:
            raise LandscapeError(f"expected a split among {', '.join(splits)}, found {name!r}")
        return np.array([row[column] for row in self.rows if row["split"] == name], dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve(_Points):
    """Loss along a line; ``alphas`` (A,) in units of the direction."""

    alphas: Floats

    def values(self, column: str = "loss_nats", split: str | None = None) -> Floats:
        """A column of one split (default: the first), shape (A,)."""
        return self._chosen(column, split)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw as the paper's figure does; returns the axes."""
        from figures import curves

        return curves.plot(self.to_frame().assign(label=self.provenance["space"]["kind"]), ax)

    def __repr__(self) -> str:
        return f"Curve({len(self.alphas)} points, {_summary(self.provenance)})"


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface(_Points):
    """Loss over a plane; ``xs`` (X,) and ``ys`` (Y,) in units of the two directions."""

    xs: Floats
    ys: Floats

    def values(self, column: str = "loss_nats", split: str | None = None) -> Floats:
        """A column of one split (default: the first), shape (X, Y): entry [i, j] lies at (xs[i], ys[j])."""
        return self._chosen(column, split).reshape(len(self.xs), len(self.ys))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw as the paper's figure does; returns the axes."""
        from figures import surfaces

        return surfaces.plot(self.to_frame().assign(label=self.provenance["space"]["kind"]), ax)

    def __repr__(self) -> str:
        return f"Surface({len(self.xs)} x {len(self.ys)} points, {_summary(self.provenance)})"


def grid(extent: float, points: int) -> Floats:
    """An odd number of evenly spaced coordinates from -extent to extent: exactly symmetric, with an exact 0.

    Raises
    ------
    LandscapeError
        For an even number of points, fewer than three, or an extent that is not positive and finite.
    """
    if points < 3 or points % 2 == 0:
        raise LandscapeError(f"expected an odd number of points, at least 3, so that the centre is one; found {points}")
    if not (np.isfinite(extent) and extent > 0):
        raise LandscapeError(f"expected a positive finite extent, found {extent}")
    right = np.linspace(0.0, extent, points // 2 + 1)[1:]
    return np.concatenate([-right[::-1], [0.0], right])


def line(
    objectives: Objectives,
    space: Space,
    direction: Direction,
    alphas: ArrayLike,
    *,
    on_point: OnPoint | None = None,
) -> Curve:
    """Loss at centre + alpha * direction.

    Parameters
    ----------
    objectives
        One, or one a split (``{"train": ..., "test": ...}``): weights are written once a point for all of them. A
        single one is called ``data`` in the table.
    space, direction
        What moves, and where to.
    alphas
        (A,) finite; rises are over the centre whether 0 is among them or not.
    on_point
        Called with (points done, points in all) after each point.

    An objective on another model, one that is not deterministic, and a coordinate that is not finite are a
    ``LandscapeError``.
    """
    coordinates = _coordinates("alphas", alphas)
    points = [{"alpha": float(a)} for a in coordinates]
    rows, provenance = _measure(objectives, space, [direction], points, on_point)
    return Curve(alphas=coordinates, rows=rows, provenance=provenance)


def plane(
    objectives: Objectives,
    space: Space,
    dx: Direction,
    dy: Direction,
    xs: ArrayLike,
    ys: ArrayLike,
    *,
    on_point: OnPoint | None = None,
) -> Surface:
    """Loss at centre + x * dx + y * dy for every x and y; arguments and errors are those of :func:`line`.

    Rows run over y fastest. The column ``direction`` holds the seed of ``dx``, ``direction_norm`` its norm; both
    directions and their cosine are in the provenance.
    """
    across, up = _coordinates("xs", xs), _coordinates("ys", ys)
    points = [{"x": float(x), "y": float(y)} for x in across for y in up]
    rows, provenance = _measure(objectives, space, [dx, dy], points, on_point)
    return Surface(xs=across, ys=up, rows=rows, provenance=provenance)


def _measure(
    objectives: Objectives,
    space: Space,
    directions: Sequence[Direction],
    points: Sequence[dict[str, float]],
    on_point: OnPoint | None,
) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    named = {"data": objectives} if isinstance(objectives, Objective) else dict(objectives)
    if not named:
        raise LandscapeError("expected at least one objective, found none")
    for split, objective in named.items():
        if objective.model is not space.model:
            raise LandscapeError(f"expected the objective {split!r} on the model of the space, found another model")
    started, passes = time.perf_counter(), 0
    gram = [[d.dot(e) for e in directions] for d in directions]
    common = _common(space, directions)
    rows: list[dict[str, Any]] = []
    with space, eval_mode(space.model):
        centre = {}
        for split, objective in named.items():
            passes += 1 if objective.checked else 2
            centre[split] = objective.evaluate() if objective.checked else objective.check_deterministic()
        for done, point in enumerate(points, 1):
            at = list(point.values())
            radius = space.effective_radius(directions, at, gram)
            if any(at):
                space.move(directions, at)
            for split, objective in named.items():
                here = objective.evaluate() if any(at) else centre[split]
                passes += 1 if any(at) else 0
                rows.append({**common, "split": split, **point, **_row(here, centre[split], radius)})
            if on_point is not None:
                on_point(done, len(points))
    broken = sum(row["nonfinite"] > 0 for row in rows)
    if broken:
        warnings.warn(
            f"{broken} of {len(rows)} rows have losses that are inf or NaN; they stay so, see column nonfinite",
            RuntimeWarning,
            stacklevel=3,
        )
    cost = {"points": len(points), "passes": passes, "seconds": time.perf_counter() - started}
    return tuple(rows), {**_provenance(named, space, directions, centre), "cost": cost, "nonfinite_rows": broken}


def _common(space: Space, directions: Sequence[Direction]) -> dict[str, Any]:
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


def _row(here: Evaluation, centre: Evaluation, radius: float) -> dict[str, Any]:
    rise, rise_se = here.rise_over(centre)
    logit_radius, kl = here.distance_from(centre)
    return {
        "loss_nats": here.mean_loss,
        "loss_se_nats": here.loss_se,
        "rise_nats": rise,
        "rise_se_nats": rise_se,
        "accuracy": here.accuracy,
        "accuracy_se": here.accuracy_se,
        "effective_radius": radius,
        "logit_radius": logit_radius,
        "kl_nats": kl,
        "samples": here.n,
        "nonfinite": here.nonfinite,
        "evaluated": True,
    }


def _provenance(
    named: Mapping[str, Objective],
    space: Space,
    directions: Sequence[Direction],
    centre: Mapping[str, Evaluation],
) -> dict[str, Any]:
    """What NUMERICS 28 asks a table to say, as plain data."""
    first = next(iter(space.parameters.values()))
    return {
        "directions": [d.describe() for d in directions],
        "cosine": cosine(*directions) if len(directions) == 2 else None,
        "policy": asdict(space.policy),
        "space": {
            "kind": space.kind,
            "head": space.head,
            "tensors": len(space.names),
            "k": space.k,
            "share": space.share,
        },
        "mode": {"eval": True, "batch_norm": "freeze", "weights": space.weights},
        "objectives": {
            split: {
                "fingerprint": o.fingerprint,
                "samples": o.n,
                "batch_size": o.batch_size,
                "halvings": o.halvings,
                "loss": "cross entropy" if o.loss is None else getattr(o.loss, "__name__", type(o.loss).__name__),
            }
            for split, o in named.items()
        },
        "baseline": {
            split: {"loss_nats": e.mean_loss, "loss_se_nats": e.loss_se, "accuracy": e.accuracy}
            for split, e in centre.items()
        },
        "dtype": str(first.dtype).removeprefix("torch."),
        "device": first.device.type,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def _coordinates(name: str, values: ArrayLike) -> Floats:
    coordinates = np.array(values, dtype=np.float64)
    if coordinates.ndim != 1 or not len(coordinates) or not np.isfinite(coordinates).all():
        raise LandscapeError(f"expected {name} to be finite numbers in one dimension, found {coordinates.tolist()}")
    return coordinates


def _summary(provenance: Mapping[str, Any]) -> str:
    splits = ", ".join(f"{s} loss {b['loss_nats']:.4g} nats at the centre" for s, b in provenance["baseline"].items())
    return f"{provenance['space']['kind']} space, k={provenance['space']['k']:,}: {splits}"
