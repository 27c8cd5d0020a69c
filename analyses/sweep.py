"""Train many runs: those that are finished are found, those that were cut off go on."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from train.run import Run
    from train.spec import RunSpec
    from train.tasks import Task


def train_all(
    specs: Sequence[RunSpec],
    runs: Path,
    *,
    workers: int = 1,
    device: str = "cpu",
    on_done: Callable[[Any], Any] | None = None,
) -> list[Run]:
    """The finished runs of ``specs``, in that order, below the folder ``runs``.

    A finished run of other data or another backbone than its specification names now is refused, not returned.

    Raises
    ------
    AnalysisError
        If two specifications would share a run folder.
    """
    from analyses.errors import AnalysisError
    from analyses.parallel import each
    from train.run import Run

    for spec in specs:
        if sum(other.name == spec.name for other in specs) > 1:
            raise AnalysisError(f"two of the runs would be named {spec.name}: give their folders different names")
    missing = [spec for spec in specs if not is_done(runs / spec.name)]
    for spec in specs:
        if spec not in missing:
            data = _data(_of_data(spec))[0].fingerprint
            Run.open(runs / spec.name).check({"data": data, "backbone": _backbone(_of_backbone(spec))})
            if on_done:
                on_done(spec)
    each(functools.partial(train_one, runs=runs, device=device), missing, workers=workers, on_done=on_done)
    return [Run.open(runs / spec.name) for spec in specs]


def swept(
    specs: Sequence[RunSpec],
    tables: Callable[[Sequence[Run]], dict[str, pd.DataFrame]],
    name: str,
    settings: dict[str, Any],
    *,
    out: Path,
    workers: int,
    device: str,
    quiet: bool,
) -> dict[str, pd.DataFrame]:
    """Train into ``out/runs``, say how far it is, and keep the runs' tables in ``out/tables/<name>``."""
    from analyses.checkpoint import identity
    from analyses.store import announce, cached
    from figures.command import progress

    announce(quiet, f"{len(specs)} runs, {workers} at a time")
    with progress(len(specs), "runs", quiet) as bar:
        runs = train_all(specs, out / "runs", workers=workers, device=device, on_done=lambda _: bar.update())
    settings = {**settings, "runs": [identity(run) for run in runs]}
    return cached(out / "tables" / name, settings, lambda: (tables(runs), {}))


def train_one(spec: RunSpec, *, runs: Path, device: str) -> str:
    """Train one run, or find it; returns its folder's name."""
    from train.loop import fit

    task, inputs = _data(_of_data(spec))
    return fit(spec, task, runs, device=device, quiet=True, cache=inputs).path.name


def _of_data(spec: RunSpec) -> RunSpec:
    """The specification with all at its default that the data do not depend on."""
    from train.spec import RunSpec

    fields = ("task", "train_size", "test_size", "data_seed", "backbone", "img_size")
    return RunSpec(**{name: getattr(spec, name) for name in fields})


def _of_backbone(spec: RunSpec) -> RunSpec:
    """The specification with all at its default that the backbone does not depend on; random ones are each new."""
    return spec if spec.backbone.startswith("random:") else _of_data(spec)


@functools.lru_cache
def _backbone(spec: RunSpec) -> str:
    """The fingerprint of a backbone, read once in a process."""
    from train.build import backbone_hash

    return backbone_hash(spec)


@functools.lru_cache(maxsize=4)
def _data(spec: RunSpec) -> tuple[Task, dict]:
    """The task of a run and a place for its prepared inputs: once in a process, for all runs on the same data."""
    from train.build import load_task

    return load_task(spec), {}


def is_done(folder: Path) -> bool:
    """Whether a run folder holds a finished run."""
    from train.errors import TrainError
    from train.run import Run

    try:
        return Run.open(folder).status == "done"
    except TrainError:
        return False


def results(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run: the model's columns and the metrics of its ``run.json``."""
    import pandas as pd

    return pd.DataFrame([{**run.labels(), **run.metrics} for run in runs])
