"""What do few bits cost? ``python -m analyses.bits TASK [TASK ...]``.

The same adapters trained at 32 bits and at fewer, paired over seeds: accuracies and the sizes of their files.
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


@dataclass(frozen=True, kw_only=True)
class Bits:
    """How the runs are trained."""

    methods: tuple[str, ...] = ("adaptformer", "lora")
    """Adapter methods."""
    dim: int = 8
    """Their hidden size or rank."""
    bits: tuple[int, ...] = (1,)
    """Bits a weight that are held against 32."""
    backbone: str = "vit_tiny32"
    """As in ``python -m train``."""
    seeds: int = 5
    """Training seeds 0, 1, ..."""
    recipe: str = "short"
    """Preset of the training recipe."""
    epochs: int = 6
    """In place of the recipe's."""
    train_size: int = 1000
    """Training images, of which a fifth is for validation."""
    test_size: int | None = None
    """Test images, all by default."""


def specs(tasks: Sequence[str], spec: Bits) -> list[RunSpec]:
    """The runs of the comparison."""
    from train.recipe import preset
    from train.spec import RunSpec

    return [
        RunSpec(
            task=task, train_size=spec.train_size, test_size=spec.test_size, backbone=spec.backbone, method=method,
            dim=spec.dim, bits=bits, recipe=preset(spec.recipe).with_epochs(spec.epochs), seed=seed,
        )
        for task in tasks
        for seed in range(spec.seeds)
        for method in spec.methods
        for bits in dict.fromkeys((32, *spec.bits))
    ]  # fmt: skip


def tables(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """``points``: one row a run; ``summary``: sizes, accuracies and their paired difference to 32 bits over seeds."""
    import pandas as pd

    from analyses.statistics import paired
    from analyses.sweep import results

    points = results(runs)
    columns = ["task", "method", "dim", "bits", "seed", "run", "adapter_bytes", "file_bytes", "test_accuracy"]
    points = points[[*columns, "test_loss_nats"]]
    rows = []
    for (task, method, dim), group in points.groupby(["task", "method", "dim"], sort=False):
        by_seed = group.pivot(index="seed", columns="bits", values="test_accuracy")
        for bits, same in group.groupby("bits", sort=False):
            cost = paired((by_seed[bits] - by_seed[32]).to_numpy()) if bits != 32 else None
            rows.append(
                {
                    "task": task, "method": method, "dim": dim, "bits": bits,
                    "adapter_bytes": same.adapter_bytes.mean(), "file_bytes": same.file_bytes.mean(),
                    "test_accuracy": same.test_accuracy.mean(), "test_accuracy_se": same.test_accuracy.sem(),
                    "difference": cost and cost.value, "difference_low": cost and cost.low,
                    "difference_high": cost and cost.high, "seeds": len(same),
                    "smallest_effect": cost and cost.smallest_effect,
                }
            )  # fmt: skip
    return {"points": points, "summary": pd.DataFrame(rows)}


def main(
    tasks: Positional[tuple[str, ...]],
    /,
    bits: Bits = Bits(),
    *,
    out: Path = Path("bits"),
    workers: int = os.cpu_count() or 1,
    device: str = "cpu",
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Compare adapters of few bits with the same of 32.

    Parameters
    ----------
    tasks
        As in ``python -m train``.
    bits
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
        If no task is given, or no bits below 32.
    """
    from dataclasses import asdict

    from analyses.errors import AnalysisError
    from analyses.sweep import swept
    from figures.command import emit

    if not tasks:
        raise AnalysisError("expected at least one task")
    if not set(bits.bits) - {32}:
        raise AnalysisError(f"expected bits below 32 to hold against them, found {bits.bits}")
    wanted, about = specs(tasks, bits), asdict(bits)
    found = swept(wanted, tables, "bits", about, out=out, workers=workers, device=device, quiet=quiet)
    emit(found["summary"], json)


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.bits")
