"""How much noise on its weights does a model tolerate? ``python -m analyses.noise CKPT [CKPT ...]``.

Gaussian noise of ``alpha`` times the norm of each filter, many draws: accuracy and loss against alpha.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from analyses.options import Options

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from analyses.checkpoint import Checkpoint

MODEL_SPACE = ["task", "label", "method", "dim", "bits", "seed", "run", "space", "head", "split", "alpha"]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How much noise, and how often it is drawn."""

    draws: int = 10
    """Draws of the noise for each checkpoint, the same for all levels and for models that share tensors."""
    levels: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
    """Norm of the noise as a share of the norm of each filter; 0 is the model itself."""
    head: bool = False
    """Put noise on the classification head too."""


def measure(checkpoint: Checkpoint, options: Options, spec: Noise, on_point=None) -> pd.DataFrame:
    """Loss and accuracy of one checkpoint under noise, in each of its spaces; a finished table is read."""
    from analyses.measure import lines
    from analyses.store import cached

    def compute():
        points, facts = lines(
            checkpoint, options, directions=spec.draws, alphas=spec.levels, splits=("test",), head=spec.head,
            on_point=on_point,
        )  # fmt: skip
        return {"points": points}, facts

    settings = {**options.settings(), **asdict(spec), "checkpoint": checkpoint.identity}
    return cached(checkpoint.folder / "tables" / "draws", settings, compute)["points"]


def summarise(points: pd.DataFrame) -> pd.DataFrame:
    """Mean over draws, one row a run, space and level; the standard errors are across draws."""
    from analyses.measure import mean, sem

    return points.groupby(MODEL_SPACE, sort=False, as_index=False).agg(
        accuracy=("accuracy", "mean"),
        accuracy_se_draws=("accuracy", "sem"),
        loss_nats=("loss_nats", mean),
        rise_nats=("rise_nats", mean),
        rise_se_draws_nats=("rise_nats", sem),
        draws=("direction", "size"),
    )


def report(
    checkpoints: Sequence[Checkpoint], options: Options, spec: Noise, out: Path, *, on_point=None
) -> dict[str, pd.DataFrame]:
    """All checkpoints in the tables of ``out/tables/noise``."""
    import pandas as pd

    from analyses.measure import facts
    from analyses.store import cached

    def compute():
        points = pd.concat([measure(c, options, spec, on_point) for c in checkpoints], ignore_index=True)
        return {"points": points, "summary": summarise(points)}, facts(checkpoints, "draws")

    settings = {**options.settings(), **asdict(spec), "checkpoints": [c.identity for c in checkpoints]}
    return cached(out / "tables" / "noise", settings, compute)


def main(checkpoints: Positional[tuple[Path, ...]], /, options: Options = Options(), noise: Noise = Noise()) -> None:
    """Measure accuracy and loss of each checkpoint under noise on its weights.

    Parameters
    ----------
    checkpoints
        Run folders, or weights of whole networks with --backbone and --task.
    options
        What every analysis takes.
    noise
        How much noise, and how often it is drawn.
    """
    from analyses.checkpoint import open_all
    from analyses.store import announce, draw
    from figures.command import emit, progress

    opened, out = open_all(checkpoints, options)
    total = sum(len(c.spaces()) for c in opened) * noise.draws * len(noise.levels)
    announce(
        options.quiet,
        f"{len(opened)} checkpoint(s), {noise.draws} draws x {len(noise.levels)} levels, {options.samples} test images",
    )
    with progress(total, "points", options.quiet) as bar:
        tables = report(opened, options, noise, out, on_point=lambda *_: bar.update())
    draw(out, options.quiet)
    emit(tables["summary"], options.json)


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.noise")
