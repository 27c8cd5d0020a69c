"""Is there a hill between two minima? ``python -m analyses.connectivity A B [C]``.

The loss on the straight line between two checkpoints and on a trained curve (Garipov et al. 2018), with the barrier on
each; with a third checkpoint, the loss on the plane through all three.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from analyses.bounds import at_least, odd, positive
from analyses.options import Options
from analyses.together import Shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analyses.checkpoint import Checkpoint
    from analyses.command import OnStep
    from analyses.store import Tables


@dataclass(frozen=True, kw_only=True)
class Ways:
    """Which ways are taken from the first checkpoint to the second."""

    points: int = 21
    """Points on a way, both ends among them."""
    space: Shared = "auto"
    """Which tensors move, the head always: auto takes merged matrices if all have them, else all weights or factors."""
    steps: int = 200
    """Training steps of the curve, a batch each; 0: the straight line alone."""
    degree: int = 2
    """Degree of the Bezier curve; 2 has one control point."""
    lr: float = 0.05
    """First step size, as a share of the root mean square difference between the ends' weights."""
    plane_points: int = 11
    """Points along an axis of the plane through three checkpoints; odd."""

    def __post_init__(self) -> None:
        """Refuse ways without both ends, curves that bend nowhere, and a plane without a centre."""
        at_least(2, points=self.points, degree=self.degree)
        at_least(0, steps=self.steps)
        positive(lr=self.lr)
        odd(plane_points=self.plane_points)


def compute(
    checkpoints: Sequence[Checkpoint], options: Options, spec: Ways, parts: Path, on_step: OnStep = None
) -> tuple[Tables, dict[str, Any]]:
    """Rows of the ways and their barriers; with three checkpoints their places and the loss in their plane."""
    import pandas as pd

    from analyses.together import beneath, check_rest, names, one_space
    from landscape.bezier import bezier_curve
    from landscape.connectivity import interpolate, plane_through

    space, states = one_space(checkpoints, spec.space, centre=0)
    check_rest(space, states, checkpoints)
    # Before anything is measured: three checkpoints on one line have no plane.
    seen = None
    if len(checkpoints) == 3:
        first, second, third = names(checkpoints)
        seen = plane_through(space, states[1], states[2], labels=(first, second, third))
    objectives = checkpoints[0].objectives(space.model, ("train", "test"), options)
    found = [interpolate(objectives, space, states[1], spec.points, on_point=on_step)]
    if spec.steps:
        found.append(
            bezier_curve(
                objectives["train"], space, states[1], spec.points, objectives=objectives, degree=spec.degree,
                steps=spec.steps, lr=spec.lr, seed=options.seed, on_step=on_step, on_point=on_step,
            )
        )  # fmt: skip
    about = {"task": checkpoints[0].task.name, "first": checkpoints[0].path.name, "second": checkpoints[1].path.name}
    tables = {
        "ways": pd.concat([w.curve.to_frame().assign(way=w.way, **about) for w in found], ignore_index=True),
        "barriers": pd.concat([w.to_frame().assign(way=w.way, **about) for w in found], ignore_index=True),
    }
    facts = {w.way: w.curve.provenance for w in found}
    if seen is not None:
        more, facts["plane"] = beneath(seen, space, objectives, spec.plane_points, options, parts, on_step)
        tables |= {name: table.assign(task=about["task"]) for name, table in more.items()}
    return tables, {"measured": facts, "runs": {c.path.name: c.identity for c in checkpoints}}


def main(checkpoints: Positional[tuple[Path, ...]], /, options: Options = Options(), ways: Ways = Ways()) -> None:
    """Measure the loss on the way from one checkpoint to another, straight and along a trained curve.

    Parameters
    ----------
    checkpoints
        Two run folders, or three: then also the plane through them.
    options
        What every analysis takes.
    ways
        Which ways are taken from the first checkpoint to the second.

    Raises
    ------
    AnalysisError
        If there are not two or three checkpoints.
    """
    from analyses.errors import AnalysisError
    from analyses.together import run

    if len(checkpoints) not in (2, 3):
        raise AnalysisError(f"expected two checkpoints, or three for a plane, found {len(checkpoints)}")
    plane = ways.plane_points**2 if len(checkpoints) == 3 else 0
    run(
        "connectivity",
        checkpoints,
        options,
        ways,
        compute,
        steps=ways.points * (2 if ways.steps else 1) + ways.steps + plane,
        said=f"{ways.points} points, a curve of degree {ways.degree} trained for {ways.steps} steps",
        shown="barriers",
    )


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.connectivity")
