"""Loss along a line and over a plane in weight space.

The centre is evaluated once, at the untouched weights, and its row is that evaluation (NUMERICS 1). Every other point
is written from the saved weights (2), and all is put back bit for bit, also after an exception (3).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from landscape.adaptive import adaptive
from landscape.directions import Direction
from landscape.errors import LandscapeError
from landscape.precision import probe as try_reduced
from landscape.probe import Objectives, Point, Probe, Row
from landscape.radius import reach, rise_at
from landscape.shards import Store
from landscape.space import Space
from landscape.workers import check, measured, open_workers

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Curve", "Surface", "grid", "line", "plane", "reach", "rise_at"]

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

    def _labelled(self) -> pd.DataFrame:
        return self.to_frame().assign(label=self.provenance["space"]["kind"])

    @property
    def _unit(self) -> str:
        # A loss of the user's own is in a unit of its own.
        return "nats" if {o["loss"] for o in self.provenance["objectives"].values()} == {"cross entropy"} else ""

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

        return curves.plot(self._labelled(), ax, unit=self._unit)

    def __repr__(self) -> str:
        return f"Curve({len(self.alphas)} points, {_summary(self.provenance, self._unit)})"


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

        return surfaces.plot(self._labelled(), ax, unit=self._unit)

    def __repr__(self) -> str:
        return f"Surface({len(self.xs)} x {len(self.ys)} points, {_summary(self.provenance, self._unit)})"


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
    error: float | None = None,
    precision: Literal["float32", "auto"] = "float32",
    workers: str | int = "1",
    store: Path | None = None,
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
    error
        Measure only as many points as this error asks for and interpolate the loss between them: the 99th percentile
        over all points, as a share of the range of the loss drawn, such as 0.005 (:mod:`landscape.adaptive`).
    precision
        ``auto``: the device's reduced precision where a probe finds it good enough (:mod:`landscape.precision`).
    workers
        ``"1"``: here; ``"4"``: four processes; ``"ray"``, ``"ray://HOST:PORT"``: a cluster. Each of the processes
        imports the script that runs this, so a script needs ``if __name__ == "__main__":`` above its work.
    store
        A folder for measured points, from which a killed run goes on.
    on_point
        Called with (points done, points in all) after each point.

    An objective on another model, one that is not deterministic, a coordinate that is not finite and points in the
    store that were measured with anything else are a ``LandscapeError``.
    """
    check(workers := str(workers))
    coordinates = _coordinates("alphas", alphas)
    probe = Probe(objectives, space, [direction], ["alpha"])
    _choose(probe, precision, [coordinates])
    rows, provenance = _measure(probe, [coordinates], error, workers, store, on_point)
    return Curve(alphas=coordinates, rows=rows, provenance=provenance)


def plane(
    objectives: Objectives,
    space: Space,
    dx: Direction,
    dy: Direction,
    xs: ArrayLike,
    ys: ArrayLike,
    *,
    error: float | None = None,
    precision: Literal["float32", "auto"] = "float32",
    workers: str | int = "1",
    store: Path | None = None,
    on_point: OnPoint | None = None,
) -> Surface:
    """Loss at centre + x * dx + y * dy for every x and y; arguments and errors are those of :func:`line`.

    Rows run over y fastest. The column ``direction`` holds the seed of ``dx``, ``direction_norm`` its norm; both
    directions and their cosine are in the provenance.
    """
    check(workers := str(workers))
    across, up = _coordinates("xs", xs), _coordinates("ys", ys)
    probe = Probe(objectives, space, [dx, dy], ["x", "y"])
    _choose(probe, precision, [across, up])
    rows, provenance = _measure(probe, [across, up], error, workers, store, on_point)
    return Surface(xs=across, ys=up, rows=rows, provenance=provenance)


def _choose(probe: Probe, precision: str, axes: Sequence[Floats]) -> None:
    # Every objective must pass the probe; the one that came nearest to its limit is reported.
    if precision == "float32":
        return
    if precision != "auto":
        raise LandscapeError(f"expected precision 'float32' or 'auto', found {precision!r}")
    extent = max(float(np.abs(axis).max()) for axis in axes)
    probed = [try_reduced(o, probe.space, probe.directions, extent=extent) for o in probe.objectives.values()]
    probe.precision = next((p for p in probed if p.precision == "float32"), probed[0])


def plane_share(
    objectives: Objectives,
    space: Space,
    dx: Direction,
    dy: Direction,
    xs: ArrayLike,
    ys: ArrayLike,
    *,
    share: tuple[int, int],
    store: Path,
    precision: Literal["float32", "auto"] = "float32",
    workers: str | int = "1",
    on_point: OnPoint | None = None,
) -> int:
    """Measure share i of n (from 1) of a plane's points into ``store``; returns how many points that is.

    :func:`plane` with the same ``store``, and the parts of the other shares beside them, gives the whole.
    """
    check(workers := str(workers))
    number, shares = share
    axes = [_coordinates("xs", xs), _coordinates("ys", ys)]
    points = _grid(axes)[number - 1 :: shares]
    probe = Probe(objectives, space, [dx, dy], ["x", "y"])
    _choose(probe, precision, axes)
    parts = Store(store, probe.identity())
    with probe, open_workers(probe, workers) as compute:
        return len(measured(compute, points, parts, on_point))


def _measure(
    probe: Probe,
    axes: Sequence[Floats],
    error: float | None,
    workers: str,
    folder: Path | None,
    on_point: OnPoint | None,
) -> tuple[tuple[Row, ...], dict[str, Any]]:
    store = Store(folder, probe.identity()) if folder else None
    points = _grid(axes)
    with probe, open_workers(probe, workers) as compute:
        if error is None:
            found = measured(compute, points, store, on_point)
            rows: list[Row] = [row for point in points for row in found[point]]
            facts: dict[str, Any] = {}
        else:
            rows, facts = adaptive(probe, points, partial(measured, compute, store=store), error, on_point)
        if store and len(machines := store.machines()) > 1:
            facts["machines"] = machines
        return _finish(probe, rows, facts)


def _finish(probe: Probe, rows: Sequence[Row], facts: dict[str, Any]) -> tuple[tuple[Row, ...], dict[str, Any]]:
    broken = sum(row["nonfinite"] > 0 for row in rows)
    if broken:
        why = "; perturbed variances may be negative there" if probe.space.batch_norm == "perturb" else ""
        warnings.warn(
            f"{broken} of {len(rows)} rows have losses that are inf or NaN; they stay so, see column nonfinite{why}",
            RuntimeWarning,
            stacklevel=4,
        )
    evaluated = sum(row["evaluated"] for row in rows) // len(probe.objectives)
    cost = {"points": evaluated, "passes": probe.passes, "seconds": probe.seconds}
    return tuple(rows), {**probe.provenance(), **facts, "cost": cost, "nonfinite_rows": broken}


def _grid(axes: Sequence[Floats]) -> list[Point]:
    return [tuple(map(float, point)) for point in product(*axes)]


def _coordinates(name: str, values: ArrayLike) -> Floats:
    coordinates = np.array(values, dtype=np.float64)
    if coordinates.ndim != 1 or not len(coordinates) or not np.isfinite(coordinates).all():
        raise LandscapeError(f"expected {name} to be finite numbers in one dimension, found {coordinates.tolist()}")
    return coordinates


def _summary(provenance: Mapping[str, Any], unit: str) -> str:
    splits = ", ".join(
        f"{s} loss {b['loss_nats']:.4g}{unit and ' '}{unit} at the centre" for s, b in provenance["baseline"].items()
    )
    return f"{provenance['space']['kind']} space, k={provenance['space']['k']:,}: {splits}"
