"""Which minimum is flatter? ``python -m analyses.flatness CKPT [CKPT ...]``.

One checkpoint gives its report: the loss along random filter-normalised lines, in the method's own space and in the
space of all weights, and the rise at the radius where the lines end. Several give the comparison of NUMERICS 16: paired
over training seeds where there are several, over directions where there is one checkpoint a side; under all three radii
of NUMERICS 12.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from analyses.bounds import at_least, odd, positive
from analyses.command import Analysis
from analyses.options import Move, Options, beside

if TYPE_CHECKING:
    import pandas as pd

    from analyses.checkpoint import Checkpoint
    from analyses.command import OnStep
    from analyses.store import Tables

MODEL = ["task", "label", "method", "dim", "bits", "seed", "run"]


@dataclass(frozen=True, kw_only=True)
class Lines(Move):
    """Which lines are drawn through each minimum."""

    directions: int = 5
    """Random directions for each checkpoint."""
    extent: float = 0.5
    """The lines end at plus and minus this alpha (1: noise of the norm of each filter)."""
    points: int = 11
    """Points on a line, the centre among them; odd."""
    measures: str | None = beside(None)
    """Measure these too: all, or some of average, worst_case, adaptive, keskar, sam, noise_radius, basin_radius,
    eigenvalues, smallest, directional, trace, gauss_newton, fisher, density, with commas between them."""

    def __post_init__(self) -> None:
        """Refuse lines without a direction, or without a centre."""
        at_least(1, directions=self.directions)
        positive(extent=self.extent)
        odd(points=self.points)
        if self.measures is not None:
            from analyses.card import measures

            measures(self.measures)


def compute(checkpoint: Checkpoint, options: Options, spec: Lines, on_step: OnStep) -> tuple[Tables, dict[str, Any]]:
    """The lines of one checkpoint in each of its spaces."""
    from analyses.measure import lines
    from landscape.surface import grid

    alphas = grid(spec.extent, spec.points).tolist()
    parts = checkpoint.folder / "tables" / ANALYSIS.part / "parts"
    curves, facts = lines(
        checkpoint, options, spec, directions=spec.directions, alphas=alphas, parts=parts / "lines", on_point=on_step
    )
    return {"curves": curves}, facts


def measured(checkpoint: Checkpoint, options: Options, spec: Lines) -> Tables:
    """The measures that are asked for beside the lines; each that is finished is kept, whatever else is asked for."""
    from analyses.card import card, measures

    return {} if spec.measures is None else card(checkpoint, options, measures(spec.measures), spec)


def summarise(curves: pd.DataFrame, split: str = "train") -> pd.DataFrame:
    """The rise of the loss at the largest radius that every line of every model in a space reaches.

    One row a run, space and radius kind; the two sides of a line and then the directions are averaged, and the standard
    error is the one across directions. Full fine-tuning stands for itself in an adapter's own space (``factors``) too:
    there its own tensors are all weights.
    """
    import pandas as pd

    from analyses.measure import mean, sem

    per_direction = rises(curves, split)
    keys = [*MODEL, "space", "head", "radius_kind", "radius"]
    rows = per_direction.groupby(keys, sort=False, as_index=False, dropna=False).agg(
        rise_nats=("rise_nats", mean), rise_se_directions_nats=("rise_nats", sem), directions=("rise_nats", "size")
    )
    all_curves = with_full_as_factors(curves[curves.split == split])
    about = all_curves.groupby(["run", "space"], as_index=False).agg(
        moving=("moving", "first"), moving_share=("moving_share", "first"), direction_norm=("direction_norm", "mean")
    )
    return pd.merge(rows, about, on=["run", "space"], how="left")


def rises(curves: pd.DataFrame, split: str = "train") -> pd.DataFrame:
    """Rise at the common radius, one row a direction: columns of the model, space, radius_kind, radius, rise_nats."""
    import pandas as pd

    from landscape.radius import RADII, reach, rise_at

    chosen = with_full_as_factors(curves[curves.split == split])
    rows: list[dict[str, Any]] = []
    for _, group in chosen.groupby(["task", "space"], sort=False):
        all_lines = [line for _, line in group.groupby(["run", "direction"], sort=False)]
        for kind in RADII:
            radius = min(reach(line, kind) for line in all_lines)
            for line in all_lines:
                about: dict[str, Any] = {c: line[c].iloc[0] for c in (*MODEL, "space", "head", "direction")}
                rise = rise_at(line, kind, radius)
                rows.append({**about, "radius_kind": kind, "radius": radius, "rise_nats": rise})
    return pd.DataFrame(rows)


def with_full_as_factors(curves: pd.DataFrame) -> pd.DataFrame:
    """Add full fine-tuning's rows a second time as its own space, where an adapter's own space is there to compare."""
    import pandas as pd

    if not (curves.space == "factors").any():
        return curves
    own = curves[curves.method == "full"].assign(space="factors")
    return pd.concat([curves, own], ignore_index=True)


def compare(curves: pd.DataFrame, split: str = "train") -> pd.DataFrame:
    """The verdicts: is each other model flatter than the reference (full fine-tuning, else the first)?

    One row a contrast, space and radius kind, and one a contrast and space for the three radii together.
    """
    from analyses.claims import flatter

    return flatter(rises(curves, split))


def derive(tables: Tables) -> Tables:
    """The summary and, where there are several models, the verdicts."""
    curves = tables["curves"]
    verdicts = {"verdicts": compare(curves)} if curves.label.nunique() > 1 else {}
    return {"summary": summarise(curves), **verdicts}


ANALYSIS = Analysis(
    name="flatness",
    part="lines",
    compute=compute,
    beside=measured,
    derive=derive,
    shown=("verdicts", "measures", "summary"),
    steps=lambda checkpoint, spec: len(spec.kinds(checkpoint)) * spec.directions * spec.points,
    assumed=lambda options, spec: (
        f"{spec.directions} directions x {spec.points} points in each space, {options.samples} images of each split, "
        f"head {'moves' if spec.head else 'still'}"
    ),
)


def main(checkpoints: Positional[tuple[Path, ...]], /, options: Options = Options(), lines: Lines = Lines()) -> None:
    """Measure how flat the minimum of each checkpoint is, and compare several.

    Parameters
    ----------
    checkpoints
        Run folders, or weights of whole networks with --backbone and --task.
    options
        What every analysis takes.
    lines
        Which lines are drawn through each minimum.
    """
    ANALYSIS.run(checkpoints, options, lines)


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.flatness")
