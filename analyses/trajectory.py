"""Where did training go, and where did others end? ``python -m analyses.trajectory CKPT CKPT CKPT ...``.

Checkpoints in the plane through the last one that leaves out least of their displacements, over the loss in that plane;
with the share of each displacement that the plane does not show.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from analyses.bounds import odd
from analyses.options import Options
from analyses.together import Shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analyses.checkpoint import Checkpoint
    from analyses.command import OnStep
    from analyses.store import Tables


@dataclass(frozen=True, kw_only=True)
class View:
    """How the checkpoints are looked at."""

    points: int = 11
    """Points along an axis of the surface beneath them; odd."""
    space: Shared = "auto"
    """Which tensors move, the head always: auto takes merged matrices if all have them, else all weights or factors."""
    start: bool = False
    """Put the last run as it was before training in front of all."""

    def __post_init__(self) -> None:
        """Refuse a surface without a centre."""
        odd(points=self.points)


def compute(
    checkpoints: Sequence[Checkpoint], options: Options, spec: View, parts: Path, on_step: OnStep = None
) -> tuple[Tables, dict[str, Any]]:
    """Places and residuals of the checkpoints, and the loss in their plane."""
    from analyses.together import before_training, beneath, names, one_space
    from landscape.trajectory import principal

    shown = [*([before_training(checkpoints[-1])] if spec.start else []), *checkpoints]
    space, states = one_space(shown, spec.space, centre=-1)
    seen = principal(space, states, labels=names(shown))
    objectives = shown[-1].objectives(space.model, ("train", "test"), options)
    tables, facts = beneath(seen, space, objectives, spec.points, options, parts, on_step)
    tables = {name: table.assign(task=shown[-1].task.name) for name, table in tables.items()}
    return tables, {"measured": facts, "runs": {c.path.name: c.identity for c in checkpoints}}


def main(checkpoints: Positional[tuple[Path, ...]], /, options: Options = Options(), view: View = View()) -> None:
    """Show checkpoints in the plane through the last one that explains most of their displacements.

    Parameters
    ----------
    checkpoints
        Run folders, or weights of whole networks with --backbone and --task, in their order; the last is the centre.
    options
        What every analysis takes.
    view
        How the checkpoints are looked at.

    Raises
    ------
    AnalysisError
        If there are fewer than three, the start counted.
    """
    from analyses.errors import AnalysisError
    from analyses.together import run

    if len(checkpoints) + view.start < 3:
        raise AnalysisError(
            f"expected three checkpoints or more, which span a plane, found {len(checkpoints)}; --start adds one"
        )
    run(
        "trajectory",
        checkpoints,
        options,
        view,
        compute,
        steps=view.points**2,
        said=f"in the plane through the last one, over {view.points} x {view.points} points",
        shown="checkpoints",
    )


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.trajectory")
