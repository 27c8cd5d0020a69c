"""Will it survive b bits? ``python -m analyses.survive CKPT [CKPT ...]``.

The loss change of rounding a 32-bit checkpoint, foretold without rounding it: g'e + e'He/2 with the real rounding
error e, by Hessian and by Gauss-Newton matrix, for each matrix alone and for all together; beside it the measured
change, and how well each ranks the matrices within a bit-width, against ||e||^2. Where the quadratic model fails the
table says so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from analyses.command import Analysis
from analyses.options import Options

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from analyses.checkpoint import Checkpoint
    from analyses.command import OnStep
    from analyses.rounding import Row
    from analyses.store import Tables
    from landscape.objective import Objective
    from landscape.space import Space

MODEL = ["task", "label", "method", "dim", "seed", "run", "quantizer", "bits"]
PREDICTORS = {"hessian": "predicted_nats", "gauss_newton": "predicted_gn_nats", "error_squared": "error_squared"}
BASELINE = "error_squared"


@dataclass(frozen=True, kw_only=True)
class Survive:
    """What the matrices are rounded to, and on which images the loss is taken."""

    bits: tuple[int, ...] = (1, 2, 3, 4)
    """Bits of a code."""
    quantizers: tuple[str, ...] = ("gaussian_l1",)
    """Quantisers, NAME[/row|/group<N>][/f16]."""
    split: Literal["train", "val", "test"] = "train"
    """Images of which the loss is foretold and measured; those of training are there when a model is to be shipped."""


def compute(checkpoint: Checkpoint, options: Options, spec: Survive, on_step: OnStep) -> tuple[Tables, dict[str, Any]]:
    """Predicted and measured changes of one checkpoint: ``matrices``, one at a time, and ``totals``, all together."""
    import pandas as pd

    from analyses.measure import labelled
    from analyses.rounding import pairs, rounded_space

    space = rounded_space(checkpoint)
    objective = checkpoint.objectives(space.model, (spec.split,), options)[spec.split]
    found, about = survive(objective, space, pairs(spec.quantizers, spec.bits), on_step)
    frames = {name: pd.DataFrame(rows) for name, rows in found.items()}
    tables = {name: labelled(f, checkpoint, bits=f["bits"], split=spec.split) for name, f in frames.items()}
    return tables, {"measured": {space.kind: {**about, "gauge": "as-trained"}}}


def survive(
    objective: Objective, space: Space, chosen: Sequence[tuple[str, int]], on_step: OnStep = None
) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """Rows of ``matrices`` and ``totals`` for each quantiser and bits, and the facts about them.

    Three steps for each pair: products with the Hessian, with the Gauss-Newton matrix, and the measurement.
    """
    from analyses.quadratic import changes, curvatures, slopes
    from analyses.rounding import facts, rounded
    from landscape.curvature import GaussNewton, Hessian
    from landscape.gradient import gradient

    def step() -> None:
        if on_step:
            on_step()

    started = time.perf_counter()
    centre = objective.check_deterministic()
    _, g = gradient(objective, space)
    curved: dict[str, dict[tuple[str, int], Any]] = {}
    products = 0.0
    for kind in (Hessian, GaussNewton):
        with kind(objective, space) as operator:
            curved[kind.name] = {}
            for pair in chosen:
                curved[kind.name][pair] = curvatures(operator, _errors(space, rounded(space, *pair)))
                step()
            products += operator.cost["products"]
    matrices: list[Row] = []
    totals: list[Row] = []
    for pair in chosen:
        tensors = rounded(space, *pair)
        e, values = _errors(space, tensors), {t.name: t.dense() for t in tensors}
        single, together = changes(objective, space, values, centre)
        (by_hessian, hessian), (by_gn, gn) = curved["hessian"][pair], curved["gauss_newton"][pair]
        own = [
            _one(name, e[name], slope, by_hessian[name], by_gn[name], single[name])
            for name, slope in slopes(g, e).items()
        ]
        label = {"quantizer": pair[0], "bits": pair[1]}
        matrices += [label | row for row in own]
        totals.append(label | _all(pair, own, hessian, gn, sum(single.values()), together, centre))
        step()
    passes = len(chosen) * (len(space.names) + 1) + 2
    cost = {"passes": passes, "gradients": 1, "products": products, "seconds": time.perf_counter() - started}
    return {"matrices": matrices, "totals": totals}, {**facts(space, objective, centre), "cost": cost}


def _errors(space: Space, tensors: Sequence[Any]) -> dict[str, Any]:
    """The rounding errors, values less weights, of each tensor."""
    return {t.name: t.dense().to(space.centre[t.name]) - space.centre[t.name] for t in tensors}


def _one(name: str, e: Any, slope: float, by_hessian: float, by_gn: float, change: Any) -> Row:
    """The row of one matrix."""
    from analyses.quadratic import mean_and_error

    measured, error = mean_and_error(change)
    squared = float(e.double().square().sum())
    about = {"tensor": name, "weights": e.numel(), "error_squared": squared}
    return {**about, **_predicted(slope, by_hessian, by_gn, measured, error)}


def _predicted(slope: float, by_hessian: float, by_gn: float, measured: float, error: float) -> Row:
    from analyses.quadratic import verdict

    # g'e + e'He/2
    by_hessian, by_gn = slope + by_hessian / 2, slope + by_gn / 2
    return {
        "slope_nats": slope,
        "predicted_nats": by_hessian,
        "predicted_gn_nats": by_gn,
        "measured_nats": measured,
        "measured_se_nats": error,
        "verdict": verdict(by_hessian, measured, error),
        "verdict_gn": verdict(by_gn, measured, error),
    }


def _all(
    pair: tuple[str, int], own: Sequence[Row], hessian: float, gn: float, summed: Any, together: Any, centre: Any
) -> Row:
    """The row of all matrices together; ``alone``: the sums of what each does by itself."""
    from analyses.quadratic import mean_and_error
    from analyses.rounding import accuracy_change

    change = together.loss - centre.loss
    slope = sum(row["slope_nats"] for row in own)
    row = _predicted(slope, hessian, gn, *mean_and_error(change))
    alone, alone_error = mean_and_error(summed)
    beyond, beyond_error = mean_and_error(change - summed)
    accuracy, accuracy_error = accuracy_change(together, centre)
    failing = sum(r["verdict"] == "fails" for r in own)
    return {
        "matrices": len(own),
        "weights": sum(r["weights"] for r in own),
        "error_squared": sum(r["error_squared"] for r in own),
        **row,
        "predicted_alone_nats": sum(r["predicted_nats"] for r in own),
        "measured_alone_nats": alone,
        "measured_alone_se_nats": alone_error,
        "beyond_sum_nats": beyond,
        "beyond_sum_se_nats": beyond_error,
        "accuracy": together.accuracy,
        "accuracy_change": accuracy,
        "accuracy_change_se": accuracy_error,
        "failing": failing,
        "reading": reading(pair, row, failing, len(own)),
    }


def reading(pair: tuple[str, int], row: Row, failing: int, count: int) -> str:
    """What a total says, in a sentence."""
    says = {
        "agrees": "the quadratic model holds",
        "fails": "the quadratic model fails",
        "within error": "the change is too small beside its error to judge the quadratic model",
    }[row["verdict"]]
    return (
        f"{pair[0]}, {pair[1]} bit{'s' if pair[1] > 1 else ''}: {says}: {row['predicted_nats']:+.3g} nats predicted "
        f"(Gauss-Newton {row['predicted_gn_nats']:+.3g}), {row['measured_nats']:+.3g} measured (standard error "
        f"{row['measured_se_nats']:.2g}); alone, {failing} of {count} matrices fail"
    )


def correlations(matrices: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """How well each predictor ranks the matrices of a model by their measured change, within a quantiser and bits.

    ``lead``: Spearman's correlation less that of ||e||^2. ``resolved``: matrices whose change is beyond twice its
    paired standard error.
    """
    import pandas as pd

    from analyses.quadratic import ERRORS
    from analyses.ranks import compare

    rows: list[Row] = []
    for _, group in matrices.groupby(MODEL, sort=False):
        target = group["measured_nats"].to_numpy(float)
        seen = abs(target) > ERRORS * group["measured_se_nats"].to_numpy(float)
        about = {c: group[c].iloc[0] for c in MODEL} | {"matrices": len(group), "resolved": int(seen.sum())}
        values = {name: group[column].to_numpy(float) for name, column in PREDICTORS.items()}
        for name, rank in compare(values, target, baseline=BASELINE, seed=seed).items():
            rows.append({**about, "predictor": name, **vars(rank)})
    return pd.DataFrame(rows)


ANALYSIS = Analysis(
    name="survive",
    part="rounding",
    compute=compute,
    derive=lambda tables: {"correlations": correlations(tables["matrices"])},
    shown=("totals",),
    steps=lambda checkpoint, spec: 3 * len(spec.quantizers) * len(spec.bits),
    unit="parts",
    assumed=lambda options, spec: (
        f"{', '.join(spec.quantizers)} after training at {', '.join(map(str, spec.bits))} bits, a grid for each matrix "
        f"unless said, head still; gradient, Hessian and change of the loss of the same {options.samples} {spec.split} "
        "images; the quadratic model fails where it is off by more than 50 % of the change and 2 paired standard errors"
    ),
)


def main(
    checkpoints: Positional[tuple[Path, ...]], /, options: Options = Options(), survive: Survive = Survive()
) -> None:
    """Predict and measure what rounding to few bits does to the loss of each checkpoint.

    Parameters
    ----------
    checkpoints
        32-bit run folders, or weights of whole networks with --backbone and --task.
    options
        What every analysis takes.
    survive
        What the matrices are rounded to, and on which images the loss is taken.
    """
    from analyses.store import announce

    tables = ANALYSIS.run(checkpoints, options, survive)
    announce(options.quiet, *tables["totals"]["reading"], *sentences(tables["correlations"]))


def sentences(found: pd.DataFrame) -> list[str]:
    """How the predictors rank the matrices, a sentence for each model, quantiser and bits."""
    lines = []
    for _, group in found.groupby(["run", "quantizer", "bits"], sort=False):
        by = group.set_index("predictor")
        best, base = by.loc["hessian"], by.loc[BASELINE]
        lines.append(
            f"{best.run}, {best.quantizer}, {best.bits} bit{'s' if best.bits > 1 else ''}: rank correlation over "
            f"{best.matrices} matrices {best.spearman:.2f} [{best.low:.2f}, {best.high:.2f}], ||e||^2 "
            f"{base.spearman:.2f} [{base.low:.2f}, {base.high:.2f}], lead {best.lead:+.2f} [{best.lead_low:+.2f}, "
            f"{best.lead_high:+.2f}]"
        )
    return lines


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.survive")
