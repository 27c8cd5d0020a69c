"""How many bits, of which kind? ``python -m analyses.precision CKPT [CKPT ...]``.

Loss and accuracy of a 32-bit checkpoint against the bits of its weights: after training, by every quantiser; in
training, from runs that differ in nothing but bits and quantiser. Beside it what the codes cost, dense and at their
entropy, and how far they are from what no code for Gaussian weights can better. The tables lie in ``tables/bits``, for
a study has a ``precision`` of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, Suppress

from analyses.command import Analysis
from analyses.options import Options
from analyses.siblings import Training

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analyses.checkpoint import Checkpoint
    from analyses.command import OnStep
    from analyses.rounding import Row
    from analyses.store import Tables
    from landscape.evaluation import Evaluation


@dataclass(frozen=True, kw_only=True)
class Bits:
    """What the matrices are rounded to."""

    bits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    """Bits of a code; a quantiser that does not exist at some of them is left out there."""
    quantizers: tuple[str, ...] = ()
    """Quantisers, NAME[/row|/group<N>][/f16]; all that there are if left out."""
    low_bit: Annotated[tuple[Path, ...], Suppress] = field(default=(), metadata={"place": True})
    """Runs trained in low bits, beside those that lie in the folder of the run."""


def compute(checkpoint: Checkpoint, options: Options, spec: Bits, on_step: OnStep) -> tuple[Tables, dict[str, Any]]:
    """The rows of one checkpoint, on test images: itself, rounded after training, trained in low bits."""
    import time

    import pandas as pd

    from analyses.measure import labelled
    from analyses.rounding import evaluate, facts, pairs, rounded, rounded_space, storage
    from analyses.siblings import siblings

    started = time.perf_counter()
    space = rounded_space(checkpoint)
    objective = checkpoint.objectives(space.model, ("test",), options)["test"]
    centre = objective.check_deterministic()
    points = [_as_trained(centre, sum(w.numel() for w in space.centre.values()))]
    matrices: list[Row] = []

    def add(about: Row, here: Evaluation, stored: Sequence[Row]) -> None:
        points.append({**about, **_point(here, centre, stored)})
        matrices.extend({**about, **row} for row in stored)
        if on_step:
            on_step()

    chosen = pairs(spec.quantizers, spec.bits)
    for quantizer, bits in chosen:
        tensors = rounded(space, quantizer, bits)
        here = evaluate(objective, space, {t.name: t.dense() for t in tensors})
        about = {"quantizer": quantizer, "bits": bits, "when": "after", "trained": ""}
        add(about, here, storage(tensors, space.centre))
    for run in siblings(checkpoint, spec.low_bit):
        model = run.model("deployed", device=options.device)
        here = checkpoint.objectives(model, ("test",), options)["test"].evaluate()
        about = {"quantizer": run.spec.quantizer, "bits": run.spec.bits, "when": "in training"}
        add(about | {"trained": run.path.name}, here, storage(_stored(run, space.names), run.trained_state()))
    frames = {"points": pd.DataFrame(points), "matrices": pd.DataFrame(matrices)}
    cost = {"points": len(points), "passes": len(points) + 1, "seconds": time.perf_counter() - started}
    measured = {space.kind: {**facts(space, objective, centre), "gauge": "as-trained", "cost": cost}}
    return {name: labelled(f, checkpoint, bits=f["bits"]) for name, f in frames.items()}, {"measured": measured}


def _as_trained(centre: Evaluation, weights: int) -> Row:
    """The row of the checkpoint itself."""
    about = {"quantizer": "none", "bits": 32, "when": "as trained", "trained": ""}
    free = {"rate_bits": 32.0, "entropy_bits": 32.0, "distortion": 0.0, "bound_at_bits": 0.0, "bound_at_entropy": 0.0}
    size = {"adapter_bytes": 4 * weights, "entropy_coded_bytes": 4.0 * weights}
    return {**about, **_measured(centre, centre), **size, **free, "samples": centre.n}


def _point(here: Evaluation, centre: Evaluation, stored: Sequence[Row]) -> Row:
    from analyses.rounding import pooled

    return {**_measured(here, centre), **pooled(stored), "samples": here.n}


def _measured(here: Evaluation, centre: Evaluation) -> Row:
    from analyses.rounding import accuracy_change

    (rise, rise_se), (change, change_se) = here.rise_over(centre), accuracy_change(here, centre)
    return {
        "loss_nats": here.mean_loss,
        "rise_nats": rise,
        "rise_se_nats": rise_se,
        "accuracy": here.accuracy,
        "accuracy_change": change,
        "accuracy_change_se": change_se,
    }


def _stored(run: Any, names: Sequence[str]) -> list[Any]:
    """The low-bit matrices of a run as its file holds them."""
    from quant.lowbit import read_lowbit
    from train.run import LOWBIT

    return [t for t in read_lowbit(run.path / LOWBIT).tensors if t.name in names]


def _inputs(checkpoint: Checkpoint, spec: Bits) -> dict[str, object]:
    from analyses.checkpoint import identity
    from analyses.siblings import siblings

    found = [identity(run) for run in siblings(checkpoint, spec.low_bit)]
    return {"trained_in_low_bits": found} if found else {}


def _steps(checkpoint: Checkpoint, spec: Bits) -> int:
    from analyses.rounding import pairs
    from analyses.siblings import siblings

    return len(pairs(spec.quantizers, spec.bits)) + len(siblings(checkpoint, spec.low_bit))


ANALYSIS = Analysis(
    name="bits",
    part="rounded",
    compute=compute,
    shown=("points",),
    steps=_steps,
    unit="models",
    assumed=lambda options, spec: (
        f"{', '.join(spec.quantizers) or 'every quantiser'} after training at {', '.join(map(str, spec.bits))} bits, a "
        f"grid for each matrix unless said, head at its own bits; runs in low bits that lie beside; {options.samples} "
        "test images"
    ),
    inputs=_inputs,
)


def main(
    checkpoints: Positional[tuple[Path, ...]], /, options: Options = Options(), bits: Bits = Bits(),
    training: Training = Training(),
) -> None:  # fmt: skip
    """Measure loss and accuracy of each checkpoint against the bits of its weights.

    Parameters
    ----------
    checkpoints
        32-bit run folders, low-bit ones of the same specification to hold beside them, or weights of whole networks
        with --backbone and --task.
    options
        What every analysis takes.
    bits
        What the matrices are rounded to.
    training
        What is trained in low bits where it is not there yet.
    """
    from analyses.siblings import sorted_out

    bases, low = sorted_out(checkpoints)
    spec = replace(bits, low_bit=tuple(low))
    if training.train:
        _train(bases, options, spec, training)
    ANALYSIS.run(bases, options, spec)


def _train(paths: Sequence[Path], options: Options, spec: Bits, training: Training) -> None:
    """Train what is missing beside each of the checkpoints."""
    from analyses.checkpoint import open_all
    from analyses.parallel import threads
    from analyses.siblings import missing
    from analyses.store import announce
    from train.loop import fit

    cache: dict[Any, Any] = {}
    with threads(options.threads_each()):
        for checkpoint in open_all(paths, options)[0]:
            for wanted in missing(checkpoint, spec.low_bit, training):
                announce(options.quiet, f"training {wanted.name} in {checkpoint.path.parent}")
                root = checkpoint.path.parent
                fit(wanted, checkpoint.task, root, device=options.device, quiet=options.quiet, cache=cache)


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.precision")
