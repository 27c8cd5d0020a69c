"""The runs that differ from a 32-bit run in nothing but the bits and the quantiser that they were trained with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from analyses.errors import AnalysisError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analyses.checkpoint import Checkpoint
    from train.run import Run
    from train.spec import RunSpec


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained in low bits where it is not there yet."""

    train: bool = False
    """Train the runs below that are missing, beside the run itself; a run that was cut off goes on."""
    train_bits: tuple[int, ...] = (1, 2, 4)
    """Their bits."""
    train_quantizers: tuple[str, ...] = ("gaussian_l1",)
    """Their quantisers."""


def sorted_out(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Checkpoints on a command line as (32-bit ones and weights that are no run, low-bit runs trained beside them).

    A low-bit run whose 32-bit run is not named brings it along, if that lies beside it.

    Raises
    ------
    AnalysisError
        If there is no 32-bit run for a low-bit one.
    """
    bases: list[Path] = []
    low: list[Run] = []
    for path in paths:
        run = _run_at(path)
        if run is None or run.spec.bits == 32:
            bases.append(path)
        else:
            low.append(run)
    named = [run for path in bases if (run := _run_at(path))]
    for run in low:
        if any(of_one_kind(run, base) for base in named):
            continue
        beside = [base for base in _runs_in(run.path.parent) if base.spec.bits == 32 and of_one_kind(run, base)]
        if not beside:
            raise AnalysisError(f"expected the 32-bit run of {run.path.name} too, found none named or beside it")
        named.append(beside[0])
        bases.append(beside[0].path)
    return bases, [run.path for run in low]


def siblings(checkpoint: Checkpoint, given: Sequence[Path]) -> list[Run]:
    """Finished low-bit runs of this checkpoint, those given and those that lie beside it, fewest bits first."""
    if checkpoint.run is None:
        return []
    found: dict[str, Run] = {}
    for run in [*filter(None, map(_run_at, given)), *_runs_in(checkpoint.path.parent)]:
        if run.spec.bits < 32 and run.status == "done" and of_one_kind(run, checkpoint.run):
            found.setdefault(run.spec.hash, run)
    return sorted(found.values(), key=lambda run: (run.spec.quantizer, run.spec.bits))


def missing(checkpoint: Checkpoint, given: Sequence[Path], training: Training) -> list[RunSpec]:
    """The low-bit runs that are asked for and not there.

    What cannot be trained in low bits is an error of ``train`` or ``quant``.

    Raises
    ------
    AnalysisError
        If the checkpoint is no run, or has no adapter.
    """
    from quant.quantizers import get
    from train.methods import get as method_of

    if checkpoint.run is None or not method_of(checkpoint.method).has_adapter:
        raise AnalysisError(f"{checkpoint.label} has no adapter to train in low bits: leave out --train")
    there = {run.spec.hash for run in siblings(checkpoint, given)}
    specs = []
    for quantizer in training.train_quantizers:
        for bits in training.train_bits:
            if not get(quantizer, bits).trains:
                raise AnalysisError(f"{quantizer} rounds after training only: leave it out of --train-quantizers")
            specs.append(replace(checkpoint.run.spec, bits=bits, quantizer=quantizer))
    return [spec for spec in specs if spec.hash not in there]


def of_one_kind(run: Run, base: Run) -> bool:
    """Whether two runs differ in bits and quantiser alone, on the same data and backbone."""
    as_base = replace(run.spec, bits=base.spec.bits, quantizer=base.spec.quantizer)
    same = as_base.without_folders() == base.spec.without_folders()
    return same and run.record["fingerprints"] == base.record["fingerprints"]


def _run_at(path: Path) -> Run | None:
    from train.run import Run

    folder = path if path.is_dir() else path.parent
    return Run.open(folder) if (folder / "run.json").is_file() else None


def _runs_in(folder: Path) -> list[Run]:
    """Runs below a folder; what cannot be read is none."""
    from train.errors import TrainError
    from train.run import Run

    found = []
    for record in sorted(folder.glob("*/run.json")):
        try:
            found.append(Run.open(record.parent))
        except TrainError:
            continue
    return found
