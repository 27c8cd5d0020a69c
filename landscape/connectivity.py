"""Ways from one checkpoint to another: the straight line, and what it shares with curves; the plane of three.

The barrier is how far the loss rises on the way over the straight line between the losses of both ends (Entezari et
al. 2022, The Role of Permutation Invariance in Linear Mode Connectivity, equation 1). A way is a combination of
directions from the space's centre, so it is measured as lines and planes are; both its ends are exact.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.directions import Direction, between, from_tensors
from landscape.errors import LandscapeError
from landscape.estimate import Estimate
from landscape.evaluation import Evaluation
from landscape.probe import Objectives, Point, Probe, Row
from landscape.provenance import of_objective
from landscape.space import Space
from landscape.surface import Curve, OnPoint
from landscape.trajectory import State, Trajectory, project

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_PARALLEL = 1e-6  # part of a direction off another one, over its norm, that is rounding of float32 weights


@dataclass(frozen=True, kw_only=True, eq=False)
class Connection:
    """A way between two checkpoints.

    Attributes
    ----------
    curve
        Loss along it; alpha 0 is the space's centre, alpha 1 the other checkpoint.
    barriers
        For each split, the largest rise over the line between the losses of the ends, at the points of the curve: 0
        where there is none. Its standard error is over samples, paired, at the highest point.
    controls
        The control points of a trained curve between its ends, as tensors by name; none for a straight line.
    """

    curve: Curve
    barriers: Mapping[str, Estimate]
    controls: tuple[Mapping[str, Tensor], ...] = ()

    @property
    def barrier(self) -> Estimate:
        """That of the first split."""
        return next(iter(self.barriers.values()))

    @property
    def way(self) -> str:
        """What kind of way it is, for a legend."""
        return f"Bezier curve of degree {len(self.controls) + 1}" if self.controls else "straight line"

    def to_frame(self) -> pd.DataFrame:
        """One row a split: split, alpha of the highest point, and the columns of the estimate."""
        import pandas as pd

        rows = [{"split": s, "alpha": e.details["alpha"], **e.row()} for s, e in self.barriers.items()]
        return pd.DataFrame(rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss along the way as the paper's figure does; returns the axes."""
        from figures import connectivity as figure

        return figure.plot(self.curve.to_frame().assign(way=self.way), ax)

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>" + self.to_frame().to_html(index=False)

    def __repr__(self) -> str:
        return f"Connection({self.way}, {len(self.curve.alphas)} points, {', '.join(map(str, self.barriers.values()))})"


def interpolate(
    objectives: Objectives, space: Space, other: State, points: int = 21, *, on_point: OnPoint | None = None
) -> Connection:
    """Loss on the straight line to another checkpoint, and the barrier on it.

    Alpha 0 is the exact centre and alpha 1 has the other's exact weights (but for the sign of zeros), which a step of
    their rounded difference misses.

    Parameters
    ----------
    objectives
        One, or one a split.
    space
        At one end. All its tensors move, whatever its policy holds still in random directions.
    other
        Tensors by name; those outside the space are only compared, with a warning where they differ.
    points
        Evenly spaced, both ends among them.
    on_point
        Called with (points done, points in all) after each point.

    A tensor that is missing or of another shape, equal ends and fewer than two points are a ``LandscapeError``.
    """
    return connect(objectives, space, ends(space, other), [], points, {}, on_point)


def plane_through(
    space: Space, a: State, b: State, *, labels: tuple[str, str, str] = ("centre", "a", "b")
) -> Trajectory:
    """The plane through three checkpoints: the space's centre at (0, 0), ``a`` on the first axis, and ``b``.

    Its two directions are orthonormal (Gram-Schmidt on the displacements; Garipov et al. 2018, appendix A.2), so that
    distances in the plane are distances between weights. Three checkpoints on one line are a ``LandscapeError``.
    """
    to_a, to_b = between(space, a), between(space, b)
    # v = (b - c) - <b - c, a - c> / |a - c|^2 (a - c)
    along = to_b.dot(to_a) / to_a.dot(to_a)
    off = {n: d.double() - along * to_a.tensors[n].double() for n, d in to_b.tensors.items()}
    pair = (from_tensors(space, to_a.tensors, f"to {labels[1]}", norm=1.0), _off_axis(space, off, to_b.norm, labels[2]))
    return project(space, [space.centre, a, b], pair, labels=labels, through=0)


def _off_axis(space: Space, off: dict[str, Tensor], norm: float, label: str) -> Direction:
    length = math.sqrt(sum(float((d * d).sum()) for d in off.values()))
    if length <= _PARALLEL * norm:
        raise LandscapeError("expected three checkpoints that span a plane, found all on one line")
    return from_tensors(space, off, f"to {label}", norm=1.0)


def ends(space: Space, other: State) -> tuple[Direction, ...]:
    """Directions to the other checkpoint: the rounded difference, and what centre + difference still lacks, if any.

    Both are taken with the same coefficient: at 1, (c + d) + r is the other's weight without an error, since the
    first sum is so near to it that r, and with it the second sum, is exact.
    """
    line = between(space, other)
    lacking = {}
    for name, d in line.tensors.items():
        target = other[name].detach().to(d.device)
        reached = torch.add(space.centre[name].to(d.dtype), d)
        lacking[name] = (target.double() - reached.double()).to(d.dtype)
    _warn_of_what_stays(space, other)
    rest = bare(space, lacking, "rounding")
    return (line, rest) if rest.moved else (line,)


def bare(space: Space, tensors: Mapping[str, Tensor], label: str) -> Direction:
    """A direction as it is: unlike ``from_tensors``, also one of zeros."""
    return Direction(tensors=tensors, seed=None, normalisation=label, policy=space.policy)


def _warn_of_what_stays(space: Space, other: State) -> None:
    own = {**dict(space.model.named_parameters()), **dict(space.model.named_buffers())}
    staying = [n for n, t in own.items() if n in other and n not in space.parameters and t.is_floating_point()]
    differing = [n for n in staying if not torch.equal(own[n].detach(), other[n].detach().to(own[n]))]
    if differing:
        warnings.warn(
            f"alpha 1 is not quite the other checkpoint: {len(differing)} tensors outside the space differ, such as "
            f"{differing[0]!r}, and stay as they are",
            RuntimeWarning,
            stacklevel=4,
        )


def coefficients(way: int, controls: int, alpha: float) -> Point:
    """Of so many directions to the end and of so many to control points, at a place on the way."""
    n = controls + 1
    # b_k(alpha) = C(n, k) (1 - alpha)^(n - k) alpha^k; that of the centre, k = 0, is what the others leave of 1
    *inner, end = (math.comb(n, k) * (1 - alpha) ** (n - k) * alpha**k for k in range(1, n + 1))
    return (*[end] * way, *inner)


def connect(
    objectives: Objectives,
    space: Space,
    way: Sequence[Direction],
    controls: Sequence[Direction],
    points: int,
    facts: dict[str, Any],
    on_point: OnPoint | None,
) -> Connection:
    """Measure the curve of these directions to its end and to its control points; ``facts`` about it are kept.

    Raises
    ------
    LandscapeError
        For fewer than two points.
    """
    if points < 2:
        raise LandscapeError(f"expected both ends among the points, at least 2, found {points}")
    alphas = np.linspace(0.0, 1.0, points)
    directions = [*way, *controls]
    columns = [f"coefficient {i}" for i in range(len(directions))]
    probe = Probe(objectives, space, directions, columns)
    moving = sum(_any(space, name, directions) for name in space.names)

    def place(alpha: float) -> Point:
        return coefficients(len(way), len(controls), alpha)

    rows: list[Row] = []
    with probe:
        for done, alpha in enumerate(alphas.tolist(), 1):
            for row in probe.rows(place(alpha)):
                kept = {key: value for key, value in row.items() if key not in columns}
                rows.append({**kept, "alpha": alpha, "moving": moving, "moving_share": moving / space.total})
            if on_point is not None:
                on_point(done, points)
        barriers = {split: _barrier(probe, split, rows, place, facts) for split in probe.objectives}
    broken = sum(row["nonfinite"] > 0 for row in rows)
    if broken:
        warnings.warn(
            f"{broken} of {len(rows)} rows have losses that are inf or NaN; they stay so, see column nonfinite",
            RuntimeWarning,
            stacklevel=3,
        )
    provenance = {**probe.provenance(), "cosine": None, **facts, "cost": {"points": points, "passes": probe.passes}}
    curve = Curve(alphas=alphas, rows=tuple(rows), provenance=provenance)
    points_at = [{n: (space.centre[n] + d).to(space.centre[n].dtype) for n, d in c.tensors.items()} for c in controls]
    return Connection(curve=curve, barriers=barriers, controls=tuple(points_at))


def _barrier(
    probe: Probe, split: str, rows: Sequence[Row], place: Callable[[float], Point], facts: dict[str, Any]
) -> Estimate:
    mine = [row for row in rows if row["split"] == split]
    losses: NDArray[np.float64] = np.array([row["loss_nats"] for row in mine])
    alphas = np.array([row["alpha"] for row in mine])
    with np.errstate(invalid="ignore"):
        # L(alpha) - ((1 - alpha) L(0) + alpha L(1)), which is 0 at both ends
        rise = losses[1:-1] - ((1 - alphas[1:-1]) * losses[0] + alphas[1:-1] * losses[-1])
    rise = np.concatenate([[0.0], rise, [0.0]])
    finite = bool(np.isfinite(losses).all())
    highest = int(np.argmax(rise))  # a NaN counts as the highest
    value, alpha, se, passes = float(rise[highest]), float(alphas[highest]), 0.0, len(mine)
    if not finite:
        value, se = (value if np.isinf(value) else math.nan), math.nan
    elif 0 < highest < len(rise) - 1:
        here, there = (_evaluate(probe, split, place(a)) for a in (alpha, 1.0))
        paired = here.loss - ((1 - alpha) * probe.centre[split].loss + alpha * there.loss)
        se = float(paired.std(ddof=1) / math.sqrt(len(paired))) if len(paired) > 1 else math.nan
        passes += 2
    return Estimate(
        measure="barrier",
        value=value,
        unit="nats",
        se=se,
        error_over="samples",
        status="exact" if finite else "diverged",
        cost={"forwards": passes, "gradients": len(facts.get("losses", ())), "seconds": probe.seconds},
        details={
            "alpha": alpha,
            "points": len(alphas),
            "ends_nats": (float(losses[0]), float(losses[-1])),
            "data": of_objective(probe.objectives[split]),
            **{key: value for key, value in facts.items() if key != "losses"},
        },
    )


def _evaluate(probe: Probe, split: str, point: Point) -> Evaluation:
    probe.space.move(probe.directions, point)
    probe.follow()
    probe.passes += 1
    return probe.objectives[split].evaluate()


def _any(space: Space, name: str, directions: Sequence[Direction]) -> int:
    """How many entries of a tensor move in one of the directions at least."""
    moved = torch.zeros(space.centre[name].shape, dtype=torch.bool, device=space.centre[name].device)
    for direction in directions:
        moved |= direction.tensors[name] != 0
    return int(moved.sum())
