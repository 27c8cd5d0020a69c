"""What the analyses of checkpoints share: each is measured by itself, then all are joined, drawn and printed.

An analysis is a file with an ``ANALYSIS = Analysis(...)``, a dataclass of its own settings and a ``main`` that calls
``ANALYSIS.run``; everything else in it is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from analyses.options import Options, settings_of
from analyses.store import Tables, announce, cached, draw

if TYPE_CHECKING:
    from pathlib import Path

    from _typeshed import DataclassInstance

    from analyses.checkpoint import Checkpoint

Spec = TypeVar("Spec", bound="DataclassInstance")
OnStep = Callable[..., Any] | None
"""Called after each step of a measurement; its arguments are of no account."""


def _no_tables(tables: Tables) -> Tables:
    return {}


def _none_beside(checkpoint: Checkpoint, options: Options, spec: Any) -> Tables:
    return {}


def _checkpoints(paths: Sequence[Path], options: Options) -> tuple[Sequence[Any], Path]:
    from analyses.checkpoint import open_all

    return open_all(paths, options)


def _no_inputs(checkpoint: Checkpoint, spec: Any) -> dict[str, object]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Analysis(Generic[Spec]):
    """A question that is put to each checkpoint by itself and then to all of them together.

    Parameters
    ----------
    name, part
        Folders of tables: ``name`` of the joined ones, ``part`` of those below each checkpoint.
    compute
        ``compute(checkpoint, options, spec, on_step)``: the tables of one checkpoint and the facts about them for their
        provenance (NUMERICS 28), under ``measured``.
    beside
        ``beside(checkpoint, options, spec)``: tables of one checkpoint that are kept by themselves, so that asking for
        others of them measures nothing again.
    derive
        Further tables made from the joined ones.
    shown
        Tables that the command prints: the first of these names that there is.
    steps, unit
        How many steps the measurement of a checkpoint has, for the progress bar, and what a step is; None where that
        is only known at the end.
    assumed
        The settings in words, for the line that is said before the work begins.
    settings
        What of the options belongs to the identity of the tables.
    facts
        What every table's provenance says whatever was measured.
    opens
        ``opens(paths, options)``: what is measured, and where the joined tables go. Checkpoints with their models,
        unless an analysis needs less.
    inputs
        What the tables of a checkpoint depend on beside itself, such as other runs: part of their identity.
    """

    name: str
    part: str
    compute: Callable[[Checkpoint, Options, Spec, OnStep], tuple[Tables, dict[str, Any]]]
    shown: tuple[str, ...]
    steps: Callable[[Checkpoint, Spec], int | None]
    assumed: Callable[[Options, Spec], str]
    beside: Callable[[Checkpoint, Options, Spec], Tables] = _none_beside
    derive: Callable[[Tables], Tables] = _no_tables
    unit: str = "points"
    settings: Callable[[Options], dict[str, object]] = Options.settings
    facts: Mapping[str, object] = field(default_factory=dict)
    opens: Callable[[Sequence[Path], Options], tuple[Sequence[Any], Path]] = _checkpoints
    inputs: Callable[[Checkpoint, Spec], dict[str, object]] = _no_inputs

    def measure(self, checkpoint: Checkpoint, options: Options, spec: Spec, on_step: OnStep = None) -> Tables:
        """The tables of one checkpoint; finished ones are read from below it."""

        def compute() -> tuple[Tables, dict[str, Any]]:
            tables, facts = self.compute(checkpoint, options, spec, on_step)
            return tables, {**self.facts, **facts}

        about = {**self.settings(options), **settings_of(spec, "beside"), **self.inputs(checkpoint, spec)}
        settings = {**about, "checkpoint": checkpoint.identity}
        tables = cached(checkpoint.folder / "tables" / self.part, settings, compute)
        tables |= self.beside(checkpoint, options, spec)
        label = str(checkpoint.labels()["label"])  # which says more beside others than when it was measured alone
        return {name: t.assign(label=label) if "label" in t else t for name, t in tables.items()}

    def report(
        self, checkpoints: Sequence[Checkpoint], options: Options, spec: Spec, out: Path, on_step: OnStep = None
    ) -> Tables:
        """Measure all; their tables one under another, and what is derived from them, lie in ``out/tables/<name>``."""
        import pandas as pd

        def compute() -> tuple[Tables, dict[str, Any]]:
            parts = [self.measure(c, options, spec, on_step) for c in checkpoints]
            found = dict.fromkeys(name for part in parts for name in part)
            joined = {name: pd.concat([p[name] for p in parts if name in p], ignore_index=True) for name in found}
            return {**joined, **self.derive(joined)}, {**self.facts, **_joined_facts(checkpoints, self.part)}

        about = {**self.settings(options), **settings_of(spec)}
        if any(inputs := [self.inputs(c, spec) for c in checkpoints]):
            about["inputs"] = inputs
        settings = {**about, "checkpoints": [c.identity for c in checkpoints]}
        return cached(out / "tables" / self.name, settings, compute)

    def run(self, paths: Sequence[Path], options: Options, spec: Spec) -> Tables:
        """The command: open the checkpoints, say what is assumed, measure, draw the figures, print the result."""
        from analyses.parallel import threads
        from analyses.pilot import with_samples
        from figures.command import emit, progress

        opened, out = self.opens(paths, options)
        if options.rise_se is not None:
            options = with_samples(opened, options, spec)
        counts = [self.steps(c, spec) for c in opened]
        total = None if None in counts else sum(filter(None, counts))
        images = _images(opened)
        said = f"{len(opened)} checkpoint(s), {self.assumed(_there(images, options), spec)}"
        said += f": {total} {self.unit}" if total is not None else ""
        announce(options.quiet, said, *_fewer(images, options))
        with threads(options.threads_each()), progress(total, self.unit, options.quiet) as bar:
            tables = self.report(opened, options, spec, out, lambda *_: bar.update())
            bar.update((total or bar.n) - bar.n)  # what was found finished
        draw(out, options.quiet, self.name)
        emit(next(tables[name] for name in self.shown if name in tables), options.json)
        return tables


Images = dict[str, dict[str, int]]


def _images(checkpoints: Sequence[Checkpoint]) -> Images:
    """How many images the splits of each task have."""
    tasks = {c.task.name: c.task for c in checkpoints if hasattr(c, "task")}
    return {name: {s: len(task.labels(s)) for s in ("train", "test")} for name, task in tasks.items()}


def _there(images: Images, options: Options) -> Options:
    """The options with no more samples than the largest split has, for what is said of them."""
    most = max((n for splits in images.values() for n in splits.values()), default=options.samples)
    return replace(options, samples=min(options.samples, most))


def _fewer(images: Images, options: Options) -> list[str]:
    """A line for each task that has a split with fewer images than were asked for."""
    return [
        f"{name} has {splits['train']} training and {splits['test']} test images: {options.samples} of a split were "
        "asked for, all are taken where it has fewer"
        for name, splits in images.items()
        if min(splits.values()) < options.samples
    ]


def _joined_facts(checkpoints: Sequence[Checkpoint], part: str) -> dict[str, Any]:
    """What a table joined from the tables ``part`` of several checkpoints says of itself (NUMERICS 28).

    The data of each task, and for each run its identity and the facts of its own measurement: images, baseline,
    directions, policy, mode, dtype, device and cost.
    """
    from figures.tables import read_provenance

    return {
        "data_fingerprints": {c.task.name: c.task.fingerprint for c in checkpoints if hasattr(c, "task")},
        "runs": {
            str(c.labels()["run"]): {
                "identity": c.identity,
                "measured": read_provenance(c.folder / "tables" / part).get("measured"),
            }
            for c in checkpoints
        },
    }
