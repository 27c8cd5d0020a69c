"""The whole job: train, measure, test the claims, draw. ``python -m analyses.study [NAME]``.

A study says which models are trained and what is measured on them (``analyses/studies/``). Everything lies below
``--out``: ``runs/``, ``tables/``, ``figures/`` and ``summary.md``. What is finished is found, so the command goes on
where it was stopped, and a second run changes nothing.
"""

from __future__ import annotations

import functools
import os
import time
import warnings
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from analyses.command import Analysis
    from analyses.flatness import Lines
    from analyses.gaussianity import Fits
    from analyses.noise import Noise
    from analyses.options import Options
    from analyses.surface import Plane
    from train.run import Run
    from train.spec import RunSpec


BATCH = 32
"""Images a forward pass in measurements: what fits a processor's cache is fastest on it."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """One configuration, trained once a seed."""

    method: str
    dim: int = 0
    bits: int = 32


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is trained and what is measured.

    ``flatness``, ``precision`` and ``tradeoff`` are the configurations of claims 1, 3 and 4; claim 2 is tested on the
    adapters of ``flatness``; ``context`` is trained for comparison alone. The other fields are those of the analyses.
    """

    name: str
    task: str
    train_size: int
    test_size: int | None
    recipe: str
    epochs: int
    batch_size: int
    seeds: int
    context: tuple[Model, ...]
    flatness: tuple[Model, ...]
    precision: tuple[Model, ...]
    tradeoff: tuple[Model, ...]
    samples: int
    directions: int
    extent: float
    points: int
    noise_levels: tuple[float, ...]
    noise_draws: int
    surface_points: int
    surface_extent: float
    backbone: str = "vit_tiny32"

    @property
    def models(self) -> tuple[Model, ...]:
        """Every configuration once."""
        return tuple(dict.fromkeys((*self.flatness, *self.precision, *self.tradeoff, *self.context)))

    def spec(self, model: Model, seed: int) -> RunSpec:
        """The run of a configuration and a seed."""
        from train.recipe import preset
        from train.spec import RunSpec

        recipe = replace(preset(self.recipe).with_epochs(self.epochs), batch_size=self.batch_size)
        return RunSpec(
            task=self.task, train_size=self.train_size, test_size=self.test_size, backbone=self.backbone,
            method=model.method, dim=model.dim or 8, bits=model.bits,
            recipe=recipe, seed=seed,
        )  # fmt: skip

    def specs(self, models: Sequence[Model]) -> list[RunSpec]:
        """The runs of some configurations, seed by seed, so that a study cut short has whole seeds."""
        return [self.spec(model, seed) for seed in range(self.seeds) for model in models]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement of one run, for a worker process."""

    analysis: str
    path: Path
    options: Options
    spec: Lines | Noise | Plane | Fits


def measure(job: Job) -> None:
    """Measure one run; the tables lie below it."""
    _analysis(job.analysis).measure(_opened(job.path, job.options), job.options, job.spec)


def _analysis(name: str) -> Analysis:
    """The analysis of that name."""
    return import_module(f"analyses.{name}").ANALYSIS


@functools.lru_cache(maxsize=1)
def _opened(path: Path, options: Options):
    """The checkpoint of a run, opened once for jobs that follow one another."""
    from analyses.checkpoint import open_checkpoint

    return open_checkpoint(path, options)


def jobs(study: Study, runs: Path) -> list[Job]:
    """Every measurement of the study, run by run."""
    from analyses.flatness import Lines
    from analyses.gaussianity import Fits
    from analyses.noise import Noise
    from analyses.options import Options
    from analyses.surface import Plane

    options = Options(samples=study.samples, batch_size=BATCH, quiet=True)
    lines = Lines(directions=study.directions, extent=study.extent, points=study.points)
    noise = Noise(draws=study.noise_draws, levels=study.noise_levels)
    plane = Plane(extent=study.surface_extent, points=study.surface_points)
    found = []
    for spec in study.specs(study.flatness):
        path = runs / spec.name
        found += [
            Job(analysis=name, path=path, options=options, spec=s)
            for name, s in (("flatness", lines), ("noise", noise))
        ]
        if spec.method != "full":
            found.append(Job(analysis="gaussianity", path=path, options=options, spec=Fits()))
        if spec.seed == 0:
            found.append(Job(analysis="surface", path=path, options=options, spec=plane))
    return found


def passes(study: Study) -> dict[str, int]:
    """Images that go through the network, in forward passes, by stage.

    A training step counts as three of them, as two where gradients stop at an adapter and as one under a linear probe.
    """
    spaces = sum(1 if m.method == "full" else 3 if m.method == "lora" else 2 for m in study.flatness) * study.seeds
    fitted = study.train_size * 4 // 5
    judged = study.train_size - fitted
    test = study.test_size or 1000
    steps = sum({"full": 3, "linear": 1}.get(m.method, 2) * fitted for m in study.models) * study.epochs
    evaluations = len(study.models) * (study.epochs * judged + fitted + 2 * (judged + test))
    return {
        "train": study.seeds * (steps + evaluations),
        "flatness": spaces * study.directions * study.points * 2 * study.samples,
        "noise": spaces * study.noise_draws * len(study.noise_levels) * study.samples,
        "surface": len(study.flatness) * study.surface_points**2 * 2 * study.samples,
    }


def speed(study: Study) -> float:
    """Images a second through the backbone on one thread of this machine, now."""
    import torch

    from train.backbones import create, describe

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        size = describe(study.backbone).img_size
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            model = create(study.backbone, 10).eval()
            x = torch.zeros(BATCH, 3, size, size)
            model(x)
            started = time.perf_counter()
            for _ in range(8):
                model(x)
        return 8 * len(x) / (time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)


def plan(study: Study, workers: int) -> list[str]:
    """What will be done and how long it should take, in lines."""
    images = passes(study)
    rate = speed(study) * workers
    models, measured = len(study.models), len(study.flatness)
    return [
        f"plan: {models} configurations x {study.seeds} seeds = {models * study.seeds} runs on {study.task}, "
        f"{study.train_size} images to train with, {study.test_size or 'all'} to test on, {study.epochs} epochs",
        f"      {measured} x {study.seeds} runs measured, {study.samples} images of each split: "
        f"{study.directions} lines of {study.points} points, {study.noise_draws} draws of {len(study.noise_levels)} "
        "noise levels",
        f"      {measured} surfaces of {study.surface_points} x {study.surface_points} points",
        *(f"      {stage:9} {n / 1e6:6.2f} M image passes, about {n / rate:4.0f} s" for stage, n in images.items()),
        f"      about {sum(images.values()) / rate / 60:.1f} minutes with {workers} workers if nothing is there yet",
    ]


def report(study: Study, runs: dict[str, Run], out: Path, workers: int, quiet: bool) -> pd.DataFrame:
    """Measure, join the measurements, test the claims; all tables lie below ``out/tables``. Returns the claims."""
    from analyses import claims, tradeoff
    from analyses.checkpoint import identity
    from analyses.parallel import each, threads
    from analyses.store import cached
    from analyses.sweep import results
    from figures.command import progress

    identities = {name: identity(run) for name, run in runs.items()}

    def joined() -> dict[str, dict[str, pd.DataFrame]]:
        tables = {"tradeoff": tradeoff.report([runs[s.name] for s in study.specs(study.tradeoff)], out, {})}
        todo = jobs(study, out / "runs")
        with progress(len(todo), "measuring", quiet) as bar:
            each(measure, todo, workers=workers, on_done=lambda _: bar.update())
        opened = {job.path: _opened(job.path, job.options) for job in todo}
        for name in dict.fromkeys(job.analysis for job in todo):
            group = [job for job in todo if job.analysis == name]
            measured = [opened[job.path] for job in group]
            tables[name] = _analysis(name).report(measured, group[0].options, group[0].spec, out)
        return tables

    def compute():
        with threads(1):
            tables = joined()
        precision = results([runs[s.name] for s in study.specs(study.precision)])
        found = claims.evaluate(
            flatness=tables["flatness"]["summary"],
            gaussianity=tables["gaussianity"]["matrices"],
            precision=precision,
            tradeoff=tables["tradeoff"]["points"],
        )
        cached(
            out / "tables" / "precision", {"runs": identities, "models": [asdict(m) for m in study.precision]},
            lambda: ({"points": precision}, {}),
        )  # fmt: skip
        cached(out / "tables" / "runs", {"runs": identities}, lambda: ({"runs": results(list(runs.values()))}, {}))
        return {"claims": claims.to_frame(found)}, {"name": study.name}

    return cached(out / "tables" / "claims", {"study": asdict(study), "runs": identities}, compute)["claims"]


def summary(out: Path) -> str:
    """The study in Markdown: accuracies and sizes by configuration, and the claims, from the tables alone."""
    from figures.tables import read_provenance, read_table

    runs = read_table(out / "tables" / "runs", "runs").frame
    claims = read_table(out / "tables" / "claims", "claims").frame
    about = read_provenance(out / "tables" / "claims")
    table = ["| model | test accuracy, % (s.e.) | adapter, bytes | file, bytes | seeds |", "|---|---|---|---|---|"]
    for label in runs.label.unique():
        group = runs[runs.label == label]
        accuracy = 100 * group.test_accuracy
        table.append(
            f"| {label} | {accuracy.mean():.1f} ({accuracy.sem():.1f}) | {group.adapter_bytes.mean():,.0f} "
            f"| {group.file_bytes.mean():,.0f} | {len(group)} |"
        )
    table += ["", "| claim | statement | effect [interval] | unit | margin | seeds | smallest effect | verdict |"]
    table += ["|---|---|---|---|---|---|---|---|"]
    primary: list[dict] = claims[claims.family.str.startswith("primary")].to_dict("records")
    for c in primary:
        table.append(
            f"| {c['claim']} | {c['statement']} | {c['effect']:.3g} [{c['low']:.3g}, {c['high']:.3g}] | {c['unit']} "
            f"| {c['margin']:g} | {c['n']} | {c['smallest_effect']:.2g} | **{c['verdict']}** |"
        )
    versions = ", ".join(map(" ".join, about["versions"].items()))
    table += [
        "",
        "Task {}; {}; {} cores, {}; {}.".format(
            runs.task.iloc[0], versions, about["machine"]["cores"], about["machine"]["processor"], about["date"]
        ),
    ]
    return "\n".join(table) + "\n"


def run_study(study: Study, out: Path, workers: int, *, device: str = "cpu", quiet: bool = False) -> pd.DataFrame:
    """Train, measure, test and draw; returns the claims."""
    from analyses.sweep import train_all
    from figures.command import progress
    from figures.redraw import redraw
    from figures.tables import TableError, write_text

    specs = study.specs(study.models)
    with progress(len(specs), "training", quiet) as bar:
        found = train_all(specs, out / "runs", workers=workers, device=device, on_done=lambda _: bar.update())
    claims = report(study, {run.path.name: run for run in found}, out, workers, quiet)
    told, tables = out / "summary.md", out / "tables" / "claims" / "provenance.json"
    if not told.exists() or told.stat().st_mtime_ns < tables.stat().st_mtime_ns:
        try:
            redraw(out, out / "figures")
        except TableError as error:  # after all that can be drawn: a training that diverged does not keep the claims
            warnings.warn(str(error), stacklevel=2)
        write_text(told, summary(out))
    return claims


def main(
    name: Positional[str] = "quick",
    *,
    out: Path = Path("study"),
    workers: int = os.cpu_count() or 1,
    device: str = "cpu",
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Run a study: train, measure, test the claims of the paper, draw the figures.

    Parameters
    ----------
    name
        A file of ``analyses/studies``.
    out
        Everything goes below this folder.
    workers
        Processes of one thread each.
    device
        cpu, cuda, mps: where the runs are trained.
    json
        Print the claims as JSON.
    quiet
        No plan, no progress.
    """
    import sys

    from analyses.studies import get
    from figures.command import emit

    study = get(name)
    started = time.perf_counter()
    if not quiet:
        print(*plan(study, workers), sep="\n", file=sys.stderr, flush=True)
    claims = run_study(study, out, workers, device=device, quiet=quiet)
    if not quiet:
        print((out / "summary.md").read_text(), file=sys.stderr)
        print(f"figures in {out / 'figures'}; {time.perf_counter() - started:.0f} s", file=sys.stderr)
    emit(claims, json)


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.study")
