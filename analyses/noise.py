"""How much noise on its weights does a model tolerate? ``python -m analyses.noise CKPT [CKPT ...]``.

Gaussian noise of ``alpha`` times the norm of each filter, many draws: accuracy and loss against alpha.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tyro.conf import Positional

from analyses.bounds import at_least
from analyses.command import Analysis
from analyses.errors import AnalysisError
from analyses.options import Move, Options

if TYPE_CHECKING:
    import pandas as pd

    from analyses.checkpoint import Checkpoint
    from analyses.command import OnStep
    from analyses.store import Tables

MODEL_SPACE = ["task", "label", "method", "dim", "bits", "seed", "run", "space", "head", "split", "alpha"]


@dataclass(frozen=True, kw_only=True)
class Noise(Move):
    """How much noise, and how often it is drawn."""

    draws: int = 10
    """Draws of the noise for each checkpoint, the same for all levels and for models that share tensors."""
    levels: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
    """Norm of the noise as a share of the norm of each filter; 0 is the model itself."""

    split: ClassVar[str] = "test"

    @property
    def extent(self) -> float:
        """The furthest level, where a pilot looks."""
        return max(self.levels) or 1.0

    def __post_init__(self) -> None:
        """Refuse noise that is never drawn, or that has no finite norm.

        Raises
        ------
        AnalysisError
            For the first such setting.
        """
        at_least(1, draws=self.draws)
        if not self.levels or not all(math.isfinite(level) and level >= 0 for level in self.levels):
            raise AnalysisError(f"expected --levels to be finite and at least 0, found {list(self.levels)}")


def compute(checkpoint: Checkpoint, options: Options, spec: Noise, on_step: OnStep) -> tuple[Tables, dict[str, Any]]:
    """Loss and accuracy of one checkpoint under noise, in each of its spaces."""
    from analyses.measure import lines

    points, facts = lines(
        checkpoint,
        options,
        spec,
        directions=spec.draws,
        alphas=spec.levels,
        splits=(spec.split,),
        parts=checkpoint.folder / "tables" / ANALYSIS.part / "parts",
        on_point=on_step,
    )
    return {"points": points}, facts


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


ANALYSIS = Analysis(
    name="noise",
    part="draws",
    compute=compute,
    derive=lambda tables: {"summary": summarise(tables["points"])},
    shown=("summary",),
    steps=lambda checkpoint, spec: len(spec.kinds(checkpoint)) * spec.draws * len(spec.levels),
    assumed=lambda options, spec: (
        f"{spec.draws} draws x {len(spec.levels)} levels in each space, {options.samples} test images"
    ),
)


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
    ANALYSIS.run(checkpoints, options, noise)


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.noise")
