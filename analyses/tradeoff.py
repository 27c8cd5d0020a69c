"""Fewer bits or a lower rank? ``python -m analyses.tradeoff TASK``.

Trains an adapter at equal bytes, bits times dimension held constant (32x1, 8x4, 4x8, 2x16, 1x32), over several seeds,
and holds the accuracies against one another. Finished runs are found, not trained again.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from train.run import Run
    from train.spec import RunSpec

EQUAL_BYTES = ((32, 1), (8, 4), (4, 8), (2, 16), (1, 32))
"""(bits, dim): the same packed size for any adapter whose size is proportional to its dimension (PAPER 2.5)."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the runs are trained."""

    method: str = "adaptformer"
    """An adapter method."""
    seeds: int = 5
    """Training seeds 0, 1, ...; the unit of every verdict."""
    recipe: str = "short"
    """Preset of the training recipe."""
    backbone: str = "vit_tiny32"
    """As in ``python -m train``."""
    train_size: int = 1000
    """Training images, of which a fifth is for validation."""
    test_size: int | None = None
    """Test images, all by default."""
    img_size: int | None = None
    """Height and width of the input in pixels; the backbone's own by default."""
    scale: float = 1.0
    """Scale of the adapter's branch."""
    workers: int = os.cpu_count() or 1
    """Runs trained at the same time, one thread each."""
    device: str = "cpu"
    """cpu, cuda, mps."""
    out: Path = Path("tradeoff")
    """Runs, tables and figures go below this folder."""
    json: bool = False
    """Print the result as JSON."""
    quiet: bool = False
    """No progress."""


def specs(task: str, spec: Training) -> list[RunSpec]:
    """The runs of the comparison."""
    from train.recipe import preset
    from train.spec import RunSpec

    return [
        RunSpec(
            task=task, train_size=spec.train_size, test_size=spec.test_size, img_size=spec.img_size,
            backbone=spec.backbone, method=spec.method, dim=dim, bits=bits, scale=spec.scale,
            recipe=preset(spec.recipe), seed=seed,
        )
        for bits, dim in EQUAL_BYTES
        for seed in range(spec.seeds)
    ]  # fmt: skip


def tables(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """``points``: one row a run; ``summary``: mean and standard error over seeds."""
    from analyses.sweep import results

    columns = ["task", "label", "method", "dim", "bits", "seed", "run", "adapter_bytes", "head_bytes"]
    points = results(runs)[[*columns, "test_accuracy", "test_loss_nats"]]
    keys = ["task", "label", "method", "dim", "bits"]
    summary = points.groupby(keys, sort=False, as_index=False).agg(
        accuracy=("test_accuracy", "mean"),
        accuracy_se_seeds=("test_accuracy", "sem"),
        adapter_bytes=("adapter_bytes", "mean"),
        n_seeds=("seed", "size"),
    )
    return {"points": points, "summary": summary}


def report(runs: Sequence[Run], out: Path, settings: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """The tables of ``out/tables/tradeoff``."""
    from analyses.checkpoint import identity
    from analyses.store import cached

    identities = [identity(run) for run in runs]
    return cached(out / "tables" / "tradeoff", {**settings, "runs": identities}, lambda: (tables(runs), {}))


def main(task: Positional[str], /, training: Training = Training()) -> None:
    """Hold fewer bits against a lower dimension at equal bytes."""
    from analyses.claims import fewer_bits
    from analyses.store import announce, draw
    from analyses.sweep import train_all
    from figures.command import emit, progress

    wanted = specs(task, training)
    announce(training.quiet, f"{len(wanted)} runs of {training.method} on {task}, {training.workers} at a time")
    with progress(len(wanted), "runs", training.quiet) as bar:
        runs = train_all(
            wanted, training.out / "runs", workers=training.workers, device=training.device,
            on_done=lambda _: bar.update(),
        )  # fmt: skip
    settings = {k: v for k, v in asdict(training).items() if k not in ("workers", "out", "json", "quiet")}
    found = report(runs, training.out, settings)
    draw(training.out, training.quiet, "tradeoff")
    announce(training.quiet, fewer_bits(found["points"]).to_string())
    emit(found["summary"], training.json)


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.tradeoff")
