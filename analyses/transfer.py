"""Does pretraining carry over? ``python -m analyses.transfer TASK [TASK ...]``.

Full fine-tuning and a linear probe of a backbone against the same from random weights, paired over seeds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from train.run import Run
    from train.spec import RunSpec

METHODS = ("full", "linear")


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """How the runs are trained."""

    backbone: str = "vit_tiny32"
    """The pretrained network; ``random:`` before its name is the one it is compared with."""
    seeds: int = 3
    """Training seeds 0, 1, ..."""
    recipe: str = "short"
    """Preset of the training recipe."""
    epochs: int = 10
    """In place of the recipe's."""
    train_size: int = 1000
    """Training images, of which a fifth is for validation."""
    test_size: int | None = None
    """Test images, all by default."""


def specs(tasks: Sequence[str], spec: Transfer) -> list[RunSpec]:
    """The runs of the comparison."""
    from train.recipe import preset
    from train.spec import RunSpec

    return [
        RunSpec(
            task=task, train_size=spec.train_size, test_size=spec.test_size, backbone=backbone, method=method,
            recipe=preset(spec.recipe).with_epochs(spec.epochs), seed=seed,
        )
        for task in tasks
        for seed in range(spec.seeds)
        for method in METHODS
        for backbone in (spec.backbone, f"random:{spec.backbone}")
    ]  # fmt: skip


def tables(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """``points``: one row a run; ``summary``: accuracies from both starts and their paired difference over seeds."""
    import pandas as pd

    from analyses.statistics import paired
    from analyses.sweep import results

    points = results(runs)
    points["start"] = ["random" if run.spec.backbone.startswith("random:") else "pretrained" for run in runs]
    points = points[["task", "method", "start", "seed", "run", "test_accuracy", "test_loss_nats"]]
    rows = []
    for (task, method), group in points.groupby(["task", "method"], sort=False):
        by_seed = group.pivot(index="seed", columns="start", values="test_accuracy")
        gain = paired((by_seed["pretrained"] - by_seed["random"]).to_numpy())
        rows.append(
            {
                "task": task, "method": method, "pretrained_accuracy": by_seed["pretrained"].mean(),
                "random_accuracy": by_seed["random"].mean(), "gain": gain.value, "gain_low": gain.low,
                "gain_high": gain.high, "seeds": len(by_seed), "smallest_effect": gain.smallest_effect,
            }
        )  # fmt: skip
    return {"points": points, "summary": pd.DataFrame(rows)}


def main(
    tasks: Positional[tuple[str, ...]],
    /,
    transfer: Transfer = Transfer(),
    *,
    out: Path = Path("transfer"),
    workers: int = os.cpu_count() or 1,
    device: str = "cpu",
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Compare fine-tuning from pretrained weights with fine-tuning from random ones.

    Parameters
    ----------
    tasks
        As in ``python -m train``.
    transfer
        How the runs are trained.
    out
        Runs and tables go below this folder.
    workers
        Runs trained at the same time, one thread each.
    device
        cpu, cuda, mps.
    json
        Print the result as JSON.
    quiet
        No progress.

    Raises
    ------
    AnalysisError
        If no task is given.
    """
    from dataclasses import asdict

    from analyses.errors import AnalysisError
    from analyses.sweep import swept
    from figures.command import emit

    if not tasks:
        raise AnalysisError("expected at least one task")
    wanted, about = specs(tasks, transfer), asdict(transfer)
    found = swept(wanted, tables, "transfer", about, out=out, workers=workers, device=device, quiet=quiet)
    emit(found["summary"], json)


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.transfer")
