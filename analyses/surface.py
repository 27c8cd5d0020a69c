"""A 2-D loss surface around a minimum: ``python -m analyses.surface CKPT [CKPT ...]``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from analyses.options import Options

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from analyses.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Which plane is drawn through the minimum."""

    extent: float = 1.0
    """The plane ends at plus and minus this alpha in both directions."""
    points: int = 15
    """Points along an axis, the centre among them; odd."""
    space: Literal["own", "factors", "merged", "full"] = "own"
    """Which tensors move; own: the tensors of the method itself."""
    head: bool = False
    """Move the classification head too."""


def measure(checkpoint: Checkpoint, options: Options, spec: Plane, on_point=None) -> pd.DataFrame:
    """The plane of one checkpoint, on train and test images; a finished one is read from below the run."""
    from analyses.measure import labelled
    from analyses.store import cached
    from landscape.directions import orthogonal_pair
    from landscape.space import Space
    from landscape.surface import grid, plane

    space = checkpoint.spaces()[0] if spec.space == "own" else spec.space

    def compute():
        model, names = checkpoint.network(space, head=spec.head)
        moving = Space(model, names, kind=space, head=spec.head)
        axis = grid(spec.extent, spec.points)
        pair = orthogonal_pair(moving, (options.seed, options.seed + 1))
        objectives = checkpoint.objectives(model, ("train", "test"), options)
        found = plane(objectives, moving, *pair, axis, axis, on_point=on_point)
        return {"points": labelled(found.to_frame(), checkpoint)}, {"measured": {space: found.provenance}}

    settings = {**options.settings(), **asdict(spec), "checkpoint": checkpoint.identity}
    return cached(checkpoint.folder / "tables" / "plane", settings, compute)["points"]


def report(
    checkpoints: Sequence[Checkpoint], options: Options, spec: Plane, out: Path, *, on_point=None
) -> dict[str, pd.DataFrame]:
    """The planes of all checkpoints in one table, ``out/tables/surface``."""
    import pandas as pd

    from analyses.measure import facts
    from analyses.store import cached

    def compute():
        frames = [measure(c, options, spec, on_point) for c in checkpoints]
        return {"points": pd.concat(frames, ignore_index=True)}, facts(checkpoints, "plane")

    settings = {**options.settings(), **asdict(spec), "checkpoints": [c.identity for c in checkpoints]}
    return cached(out / "tables" / "surface", settings, compute)


def main(checkpoints: Positional[tuple[Path, ...]], /, options: Options = Options(), plane: Plane = Plane()) -> None:
    """Compute the loss surface around each checkpoint on a plane of two random filter-normalised directions.

    Parameters
    ----------
    checkpoints
        Run folders, or weights of whole networks with --backbone and --task.
    options
        What every analysis takes.
    plane
        Which plane is drawn through the minimum.
    """
    from analyses.checkpoint import open_all
    from analyses.store import announce, draw
    from figures.command import emit, progress

    opened, out = open_all(checkpoints, options)
    announce(
        options.quiet,
        f"{len(opened)} checkpoint(s), {plane.points} x {plane.points} points, {options.samples} images of each split",
    )
    with progress(len(opened) * plane.points**2, "points", options.quiet) as bar:
        tables = report(opened, options, plane, out, on_point=lambda *_: bar.update())
    draw(out, options.quiet)
    emit(tables["points"], options.json)


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.surface")
