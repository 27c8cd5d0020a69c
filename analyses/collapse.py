"""Does h=32 behave like h=4? ``python -m analyses.collapse RUN [RUN ...] [--retrain]``.

A trained adapter is made smaller in three ways, at hidden sizes 1, 2, 4, ...: *merged* (units that repeat each other
are added up, and what is left takes over what it can; of a linear method the product's best approximation), *pruned*
(units of least output dropped), and with ``--retrain`` *retrained*, a new run of that size by the same recipe and seed.
Each is measured on the same test images, and its bytes are those of its file. A size carries the adapter if it and
every larger one are non-inferior by a margin of one accuracy point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from analyses.command import Analysis
from analyses.options import Options

if TYPE_CHECKING:
    from analyses.checkpoint import Checkpoint
    from analyses.command import OnStep
    from analyses.store import Tables
    from landscape.evaluation import Evaluation
    from quant.content import Lowbit

MARGIN = 0.01
"""Accuracy that a smaller adapter may lose: NUMERICS 16."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How small, and by which ways."""

    sizes: tuple[int, ...] = ()
    """Hidden sizes; 1, 2, 4, ... below the adapter's own, and what its spectra predict, if left out."""
    retrain: bool = False
    """Train each size anew by the run's recipe and seed, into the folder retrained; finished runs are found."""
    test_images: int | None = None
    """Images that accuracy is measured on; all of the test split by default."""
    tolerance: float = 1e-6
    """Units are equal if their rows of the down matrix differ, but for a factor, by this share of their norm."""


def compute(checkpoint: Checkpoint, options: Options, spec: Sizes, on_step: OnStep) -> tuple[Tables, dict[str, Any]]:
    """``branches``: what each pair holds; ``sizes``: what each smaller adapter costs, and loses."""
    import pandas as pd

    from analyses.branches import measure, with_pairs
    from analyses.checkpoint import identity
    from analyses.measure import labelled
    from analyses.smaller import exact, merged, predicted, pruned, requantised, summary
    from landscape.objective import Objective
    from quant.lowbit import read_lowbit

    run = _run(checkpoint)
    inputs, _ = checkpoint.data("train", options.samples)
    found = measure(checkpoint.model, inputs, options.images_each())
    about = summary(found, spec.tolerance)
    images = checkpoint.data("test", spec.test_images or len(checkpoint.task.labels("test")))

    def evaluate(model: Any) -> Evaluation:
        evaluation = Objective(model, *images, batch_size=options.batch_size, device=options.device).evaluate()
        if on_step:
            on_step()
        return evaluation

    stored = read_lowbit(run.path / "adapter.lowbit")
    trained = evaluate(checkpoint.model)
    rows = [_row("as trained", checkpoint.dim, checkpoint.bits, trained, trained, _bytes(stored))]
    sizes = _sizes(checkpoint.dim, spec, predicted(about), int(about.exact_units.max()))
    for size in sizes:
        small = exact(found, spec.tolerance) if size == about.exact_units.max() else merged(found, size)
        ways = [("merged", requantised(stored, small, bits=32)), ("pruned", pruned(stored, found, size))]
        if checkpoint.bits < 32:
            ways.insert(1, ("merged", requantised(stored, small, bits=checkpoint.bits)))
        for how, file in ways:
            dense = {t.name: t.dense() for t in file.tensors}
            pairs = {name: (dense[f"{name}.down.weight"], dense[f"{name}.up.weight"]) for name in found}
            evaluation = evaluate(with_pairs(checkpoint.model, pairs))
            rows.append(_row(how, size, file.header["bits"], evaluation, trained, _bytes(file)))
    anew = _retrained(checkpoint, sizes, options) if spec.retrain else []
    for small_run in anew:
        size, bits = small_run.spec.dim, small_run.spec.bits
        cost = {key: int(small_run.metrics[key]) for key in ("adapter_bytes", "file_bytes")}
        evaluation = evaluate(small_run.model(device=options.device))
        rows.append(_row("retrained", size, bits, evaluation, trained, cost))
    facts = {
        "data_fingerprint": checkpoint.task.fingerprint, "images": trained.n, "train_images": len(inputs),
        "baseline": {"loss_nats": trained.mean_loss, "accuracy": trained.accuracy}, "seed": checkpoint.seed,
        "dtype": "float32, reduced in float64", "mode": "eval", "passes": len(rows),
        "retrained": {small_run.path.name: identity(small_run) for small_run in anew},
    }  # fmt: skip
    table = pd.DataFrame(rows).rename(columns={"dim": "size", "bits": "stored_bits"})
    return {"sizes": labelled(table, checkpoint), "branches": labelled(about, checkpoint)}, {"measured": facts}


def verdicts(tables: Tables) -> Tables:
    """``verdicts``: is each smaller adapter non-inferior? Over seeds of a label if there are some, else over images.

    For each way the sizes are tested from the largest down, each at the full level, and the first that is not shown to
    be non-inferior ends it (fixed sequence: the chance of any false finding is that of one).
    """
    import pandas as pd

    from analyses.hits import paired_hits
    from analyses.statistics import paired, verdict

    rows = []
    sizes = tables["sizes"]
    for task, label in sizes[["task", "label"]].drop_duplicates().itertuples(index=False):
        model = sizes[(sizes.task == task) & (sizes.label == label)]
        own, smaller = model[model.how == "as trained"], model[model.how != "as trained"]
        for how, bits in smaller[["how", "stored_bits"]].drop_duplicates().itertuples(index=False):
            way, carried = smaller[(smaller.how == how) & (smaller.stored_bits == bits)], True
            for size in sorted(way["size"].unique(), reverse=True):
                part = way[way["size"] == size]
                if len(part) > 1:
                    e, unit = paired(part.accuracy_change.to_numpy(float)), "training seed"
                else:
                    one = part.iloc[0]
                    e, unit = paired_hits(int(one.gained), int(one.lost), int(one.images)), "image (these two networks)"
                found = verdict((e.low, e.high), kind="non-inferiority", margin=MARGIN)
                carried = carried and found == "holds"
                cost = part[["adapter_bytes", "file_bytes"]].mean()
                rows.append(
                    {
                        "task": task, "label": label, "how": how, "stored_bits": bits, "size": size, "effect": e.value,
                        "low": e.low, "high": e.high, "confidence": e.confidence, "n": e.n, "unit": unit,
                        "margin": -MARGIN, "smallest_effect": e.smallest_effect, "test": e.method, "verdict": found,
                        "carried": carried, "adapter_bytes": cost.adapter_bytes, "file_bytes": cost.file_bytes,
                        "trained_adapter_bytes": own.adapter_bytes.mean(),
                    }
                )  # fmt: skip
    return {"verdicts": pd.DataFrame(rows)} if rows else {}


def findings(tables: Tables) -> list[str]:
    """The answer in lines: the smallest size of each way that carries the adapter, or that none does."""
    lines = []
    for run, rows in tables["branches"].groupby("run", sort=False):
        product, outputs = rows.product_rank, rows.output_rank
        lines.append(
            f"{run}: of {rows.units.max()} units {rows.exact_units.max()} are left after exact merging; effective rank "
            f"of the products {product.min():.1f} to {product.max():.1f}, of the outputs on images {outputs.min():.1f} "
            f"to {outputs.max():.1f}: by these it should behave like h={math.ceil(outputs.max())}"
        )
    if "verdicts" not in tables:
        return lines
    verdicts = tables["verdicts"]
    for label, how, bits in verdicts[["label", "how", "stored_bits"]].drop_duplicates().itertuples(index=False):
        rows = verdicts[(verdicts.label == label) & (verdicts.how == how) & (verdicts.stored_bits == bits)]
        way, small = f"{label}, {how} at {bits} bit{'s' if bits > 1 else ''}", rows[rows.carried]
        v = rows.iloc[0] if small.empty else small.iloc[-1]
        change = f"{100 * v.effect:+.1f} points [{100 * v.low:.1f}, {100 * v.high:.1f}]"
        if small.empty:
            lines.append(
                f"{way}: no size is shown to carry it; h={v['size']} changes accuracy by {change}: {v.verdict}"
            )
        else:
            lines.append(
                f"{way}: h={v['size']} carries it, accuracy {change} at a margin of 1, in {v.adapter_bytes:,.0f} of "
                f"{v.trained_adapter_bytes:,.0f} bytes; unit: {v.unit}"
            )
    return lines


def _run(checkpoint: Checkpoint) -> Any:
    """The run of an adapter.

    Raises
    ------
    AnalysisError
        If it is none.
    """
    from analyses.errors import AnalysisError
    from train.methods import get

    if checkpoint.run is None or not get(checkpoint.method).has_adapter:
        raise AnalysisError(f"{checkpoint.path}: expected the run of an adapter, found {checkpoint.label}")
    return checkpoint.run


def _sizes(dim: int, spec: Sizes, *more: int) -> list[int]:
    """The sizes asked for, largest first; by default powers of two and what else is of interest below ``dim``.

    Raises
    ------
    AnalysisError
        If one is not from 1 to below ``dim``.
    """
    from analyses.errors import AnalysisError

    if wrong := [size for size in spec.sizes if not 1 <= size < dim]:
        raise AnalysisError(f"expected sizes from 1 to below the adapter's {dim}, found {wrong[0]}")
    chosen = spec.sizes or [2**k for k in range(dim.bit_length()) if 2**k < dim] + [n for n in more if 1 <= n < dim]
    return sorted(set(chosen), reverse=True)


def _row(how: str, dim: int, bits: int, here: Evaluation, trained: Evaluation, cost: dict[str, int]) -> dict[str, Any]:
    import numpy as np

    assert here.hit is not None
    assert trained.hit is not None
    rise, rise_se = here.rise_over(trained)
    change = here.hit.astype(float) - trained.hit.astype(float)
    return {
        "how": how, "dim": dim, "bits": bits, **cost, "loss_nats": here.mean_loss, "loss_se_nats": here.loss_se,
        "accuracy": here.accuracy, "accuracy_se": here.accuracy_se, "loss_change_nats": rise,
        "loss_change_se_nats": rise_se, "accuracy_change": float(change.mean()),
        "accuracy_change_se": float(change.std(ddof=1) / math.sqrt(len(change))) if len(change) > 1 else math.nan,
        "gained": int(np.sum(change > 0)), "lost": int(np.sum(change < 0)), "images": here.n,
        "same_prediction": float((here.logits.argmax(1) == trained.logits.argmax(1)).double().mean()),
    }  # fmt: skip


def _bytes(file: Lowbit) -> dict[str, int]:
    from quant.header import is_head
    from quant.lowbit import to_bytes

    payload = sum(t.nbytes for t in file.tensors if not is_head(t.name, file.header))
    return {"adapter_bytes": payload, "file_bytes": len(to_bytes(file))}


def _retrained(checkpoint: Checkpoint, sizes: list[int], options: Options) -> list[Any]:
    """Runs of these sizes, trained as the checkpoint's was; those that are finished are found."""
    from dataclasses import replace

    from analyses.sweep import train_all

    spec = _run(checkpoint).spec
    if options.task is not None:
        spec = replace(spec, task=options.task)
    workers = int(options.workers) if options.workers.isdecimal() else 1
    folder = (options.out or checkpoint.path) / "retrained"
    return train_all([replace(spec, dim=size) for size in sizes], folder, workers=workers, device=options.device)


def _steps(checkpoint: Checkpoint, spec: Sizes) -> int:
    sizes = len(_sizes(checkpoint.dim, spec))
    return 1 + sizes * (2 + (checkpoint.bits < 32) + spec.retrain)


def _assumed(options: Options, spec: Sizes) -> str:
    from_scratch = ", each also trained from scratch" if spec.retrain else ""
    images = spec.test_images or "all"
    return f"units measured on {options.samples} training images, accuracy on {images} test images{from_scratch}"


ANALYSIS = Analysis(
    name="collapse",
    part="smaller",
    compute=compute,
    derive=verdicts,
    shown=("verdicts", "sizes"),
    steps=_steps,
    unit="networks",
    assumed=_assumed,
)


def main(checkpoints: Positional[tuple[Path, ...]], /, options: Options = Options(), sizes: Sizes = Sizes()) -> None:
    """Find the smallest hidden size that carries what a trained adapter does.

    Parameters
    ----------
    checkpoints
        Run folders of adapters; several seeds of one are decided over seeds.
    options
        What every analysis takes.
    sizes
        How small, and by which ways.
    """
    from analyses.store import announce

    tables = ANALYSIS.run(checkpoints, options, sizes)
    announce(options.quiet, *findings(tables))


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.collapse")
