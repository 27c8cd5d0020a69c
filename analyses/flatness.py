"""Which minimum is flatter? ``python -m analyses.flatness CKPT [CKPT ...]``.

One checkpoint gives its report: the loss along random filter-normalised lines, in the method's own space and in the
space of all weights, and the rise at the radius where the lines end. Several give the comparison of NUMERICS 16: paired
over training seeds where there are several, over directions where there is one checkpoint a side; under all three radii
of NUMERICS 12.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from analyses.options import Options

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from analyses.checkpoint import Checkpoint

MODEL = ["task", "label", "method", "dim", "bits", "seed", "run"]


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Which lines are drawn through each minimum."""

    directions: int = 5
    """Random directions for each checkpoint."""
    extent: float = 0.5
    """The lines end at plus and minus this alpha (1: noise of the norm of each filter)."""
    points: int = 11
    """Points on a line, the centre among them; odd."""
    head: bool = False
    """Move the classification head too."""


def measure(checkpoint: Checkpoint, options: Options, spec: Lines, on_point=None) -> pd.DataFrame:
    """The lines of one checkpoint in each of its spaces; finished ones are read from below the run."""
    from analyses.measure import lines
    from analyses.store import cached
    from landscape.surface import grid

    def compute():
        alphas = grid(spec.extent, spec.points).tolist()
        curves, facts = lines(
            checkpoint, options, directions=spec.directions, alphas=alphas, head=spec.head, on_point=on_point
        )
        return {"curves": curves}, facts

    settings = {**options.settings(), **asdict(spec), "checkpoint": checkpoint.identity}
    return cached(checkpoint.folder / "tables" / "lines", settings, compute)["curves"]


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


def report(
    checkpoints: Sequence[Checkpoint], options: Options, spec: Lines, out: Path, *, on_point=None
) -> dict[str, pd.DataFrame]:
    """Measure, summarise and compare; the tables lie in ``out/tables/flatness``."""
    import pandas as pd

    from analyses.measure import facts
    from analyses.store import cached

    def compute():
        curves = pd.concat([measure(c, options, spec, on_point) for c in checkpoints], ignore_index=True)
        tables = {"curves": curves, "summary": summarise(curves)}
        if curves.label.nunique() > 1:
            tables["verdicts"] = compare(curves)
        return tables, facts(checkpoints, "lines")

    settings = {**options.settings(), **asdict(spec), "checkpoints": [c.identity for c in checkpoints]}
    return cached(out / "tables" / "flatness", settings, compute)


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
    from analyses.checkpoint import open_all
    from analyses.store import announce, draw
    from figures.command import emit, progress

    opened, out = open_all(checkpoints, options)
    spaces = sum(len(c.spaces()) for c in opened)
    total = spaces * lines.directions * lines.points
    announce(
        options.quiet,
        f"{len(opened)} checkpoint(s), {lines.directions} directions x {lines.points} points in {spaces} space(s), "
        f"{options.samples} images of each split, head {'moves' if lines.head else 'still'}",
    )
    with progress(total, "points", options.quiet) as bar:
        tables = report(opened, options, lines, out, on_point=lambda *_: bar.update())
    draw(out, options.quiet)
    emit(tables.get("verdicts", tables["summary"]), options.json)


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.flatness")
