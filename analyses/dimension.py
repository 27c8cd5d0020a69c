"""How many dimensions does tuning need? ``python -m analyses.dimension RUN [RUN ...]``.

Beside a finished run of full fine-tuning, on its task, backbone and recipe, trains the head alone and random subspaces
of growing dimension (:mod:`train.methods.subspace`), and says at which one a share of full fine-tuning's accuracy is
reached (Li et al. 2018, Aghajanyan et al. 2020), in dimensions and in bytes. Adapters given too are held beside them.

A subspace needs a learning rate of its own. The head's stays that of the recipe; the scale s multiplies that of the
weights, since AdamW's step does not depend on the gradient's size. It is chosen for each dimension by the accuracy on
the validation split at the first seed, and kept for the others.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from train.run import Run
    from train.spec import RunSpec

    TrainAll = Callable[[Sequence[RunSpec]], list[Run]]

SAME = ("task_name", "train_size", "test_size", "data_seed", "backbone", "img_size", "protocol", "inputs", "recipe")


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Which subspaces are trained, and what they are held against."""

    dims: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000)
    """Dimensions of the subspace."""
    scales: tuple[float, ...] = (3.0, 10.0, 30.0)
    """Tried at the first seed; the one of the highest accuracy on the validation split is taken."""
    share: float = 0.9
    """Of full fine-tuning's accuracy, to be reached."""
    seeds: tuple[int, ...] = ()
    """Training seeds; those of the full fine-tuning given if left out."""
    workers: int = os.cpu_count() or 1
    """Runs trained at the same time, one thread each."""
    device: str = "cpu"
    """cpu, cuda, mps."""
    out: Path = Path("dimension")
    """Runs, tables and figures go below this folder; finished runs are found there."""
    json: bool = False
    """Print the result as JSON."""
    quiet: bool = False
    """No progress."""


def opened(paths: Sequence[Path]) -> list[Run]:
    """The runs of a command line, if they are finished and differ only in method, size, bits and seed.

    Raises
    ------
    AnalysisError
        If they do not, one is given twice, or none is full fine-tuning.
    """
    from analyses.errors import AnalysisError
    from train.run import Run

    runs = [Run.open(path) for path in paths]
    for run in runs:
        if run.status != "done":
            raise AnalysisError(f"{run.path}: expected a finished run, found one that is {run.status}")
        for field in SAME:
            if getattr(run.spec, field) != getattr(runs[0].spec, field):
                raise AnalysisError(f"{run.path} and {runs[0].path} differ in {field}: they cannot be compared")
        if run.record["fingerprints"] != runs[0].record["fingerprints"]:
            raise AnalysisError(f"{run.path} and {runs[0].path} saw other data or another backbone")
    if not any(run.spec.method == "full" for run in runs):
        raise AnalysisError(f"expected a run of full fine-tuning as the reference, found none among {len(runs)} run(s)")
    if len({run.path.name for run in runs}) < len(runs):
        raise AnalysisError("expected each run once, found one twice")
    return runs


def trained(given: Sequence[Run], ladder: Ladder, train: TrainAll) -> tuple[list[Run], list[Run]]:
    """The runs to compare and those of the search; what is not among the given ones goes through ``train``."""
    reference = next(run.spec for run in given if run.spec.method == "full")
    seeds = ladder.seeds or tuple(sorted({run.spec.seed for run in given if run.spec.method == "full"}))
    _check(ladder, reference.protocol)
    known = {run.path.name: run for run in given}

    def find(specs: Sequence[RunSpec]) -> list[Run]:
        made = {run.path.name: run for run in train([spec for spec in specs if spec.name not in known])}
        return [(known | made)[spec.name] for spec in specs]

    def on(seed: int, method: str, **changes: Any) -> RunSpec:
        return replace(reference, seed=seed, method=method, **changes)

    search = find([on(seeds[0], "subspace", dim=d, scale=s) for d in ladder.dims for s in ladder.scales])
    best = [max((run for run in search if run.spec.dim == d), key=_validated) for d in ladder.dims]
    others = [replace(run.spec, seed=seed) for seed in seeds[1:] for run in best]
    ends = [on(seed, method) for method in ("full", "linear") for seed in seeds]
    beside = [run for run in given if run.spec.method not in ("full", "linear", "subspace")]
    return [*find(ends), *beside, *best, *find(others)], search


def tables(runs: Sequence[Run], search: Sequence[Run], share: float) -> dict[str, pd.DataFrame]:
    """``points`` and ``answer`` (:mod:`analyses.crossing`), ``runs`` and ``search``, a row a run in both."""
    from analyses.crossing import answers, points

    frame, classes = _rows(runs), len(runs[0].classes)
    found = _rows(search)
    found["chosen"] = found["run"].isin(frame["run"])
    return {
        "points": points(frame, classes),
        "answer": answers(frame, classes, share),
        "runs": frame,
        "search": found.drop(columns=["test_accuracy"]),
    }


def main(runs: Positional[tuple[Path, ...]], /, ladder: Ladder = Ladder()) -> None:
    """Train random subspaces of growing dimension until a share of full fine-tuning's accuracy is reached.

    Args:
        runs: Finished runs: full fine-tuning, of one seed or more, and adapters to hold beside.
        ladder: Which subspaces are trained.
    """
    from analyses.checkpoint import identity
    from analyses.store import announce, cached, draw
    from analyses.sweep import train_all
    from figures.command import emit, progress

    given = opened(runs)

    def train(specs: Sequence[RunSpec]) -> list[Run]:
        with progress(len(specs), "runs", ladder.quiet) as bar:
            return train_all(
                specs, ladder.out / "runs", workers=ladder.workers, device=ladder.device,
                on_done=lambda _: bar.update(),
            )  # fmt: skip

    announce(
        ladder.quiet,
        f"random subspaces of {', '.join(map(str, ladder.dims))} dimensions at scales "
        f"{', '.join(f'{s:g}' for s in ladder.scales)}, {given[0].spec.recipe.epochs} epochs on {given[0].spec.task}",
    )
    compared, search = trained(given, ladder, train)
    settings = {
        "share": ladder.share,
        "runs": [identity(run) for run in compared],
        "search": [identity(run) for run in search],
    }
    facts = {
        "data_fingerprints": {compared[0].spec.task_name: compared[0].record["fingerprints"]["data"]},
        "classes": len(compared[0].classes),
        "recipe": compared[0].spec.recipe.to_dict(),
        "device": ladder.device,
    }
    found = cached(
        ladder.out / "tables" / "dimension", settings, lambda: (tables(compared, search, ladder.share), facts)
    )
    draw(ladder.out, ladder.quiet, "dimension")
    announce(ladder.quiet, found["points"].to_string())
    emit(found["answer"], ladder.json)


def _check(ladder: Ladder, protocol: str) -> None:
    """Whether the settings can be asked of runs of that protocol.

    Raises
    ------
    AnalysisError
        If there is no dimension or scale, or an impossible one, or none can be chosen for want of a validation split.
    """
    from analyses.errors import AnalysisError

    for what, values in (("dimensions", ladder.dims), ("scales", ladder.scales)):
        if not values or min(values) <= 0 or len(set(values)) < len(values):
            raise AnalysisError(f"expected {what} above zero, each once, found {', '.join(map(str, values)) or 'none'}")
    if not 0 < ladder.share <= 1:
        raise AnalysisError(f"expected --share above 0 and at most 1, found {ladder.share}")
    if protocol == "paper" and len(ladder.scales) > 1:
        raise AnalysisError("the runs have no validation split to choose a scale by: expected one of --scales")


def _validated(run: Run) -> tuple[float, float]:
    """What the best scale has most of: accuracy on the validation split, the lower loss among equals."""
    accuracy = run.metrics["val_accuracy"]
    return (0.0, 0.0) if accuracy is None else (accuracy, -run.metrics["val_loss_nats"])


def _rows(runs: Sequence[Run]) -> pd.DataFrame:
    """A row a run; ``lr`` is the base of the schedule of what is trained, ``weights_lr`` times the subspace's scale."""
    from analyses.sweep import results

    frame = results(runs)
    frame["scale"] = [run.spec.scale for run in runs]
    frame["lr"] = [run.spec.recipe.base_lr(run.spec.method) for run in runs]
    frame["weights_lr"] = [
        run.spec.recipe.base_lr(run.spec.method) * (run.spec.scale if run.spec.method == "subspace" else 1.0)
        for run in runs
    ]
    columns = ["task", "label", "method", "dim", "bits", "seed", "run", "scale", "lr", "weights_lr", "adapter_bytes"]
    return frame[[*columns, "head_bytes", "val_accuracy", "val_loss_nats", "test_accuracy"]]


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.dimension")
