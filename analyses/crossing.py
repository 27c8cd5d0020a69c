"""Where a curve of accuracy against dimension first reaches a share of full fine-tuning, and what that takes in bytes.

A share is measured from a floor: ``of_full`` from zero (Li et al. 2018), ``above_chance`` from what guessing gives,
``above_head`` from what training the head alone gives. On a pretrained backbone the head alone may be most of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

YARDSTICKS = ("of_full", "above_chance", "above_head")
EVERY = "all"


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where a curve reaches a target.

    Attributes
    ----------
    dim_below, dim_reached
        The largest dimension below the target and the smallest at or above it; NaN where there is none.
    dim_interpolated
        Between the first dimension that reaches it and the one before, linear in log d; NaN where there is no positive
        one before.
    status
        ``reached``, or why there is no bracket or not one alone.
    """

    dim_below: float
    dim_reached: float
    dim_interpolated: float
    status: str


def crossing(dims: Sequence[float], values: Sequence[float], target: float) -> Crossing:
    """Where ``values`` (P,) at ascending ``dims`` (P,) reach the target; dimension 0 is the head alone."""
    d, v = np.asarray(dims, dtype=float), np.asarray(values, dtype=float)
    above = v >= target
    below = float(d[~above].max()) if not above.all() else math.nan
    if not above.any():
        return Crossing(
            dim_below=below, dim_reached=math.nan, dim_interpolated=math.nan, status=f"not reached up to {d[-1]:g}"
        )
    first = int(above.argmax())
    reached, between, status = float(d[first]), math.nan, "reached"
    if first == 0:
        status = f"reached by the smallest, {d[0]:g}"
    elif d[first - 1] == 0:
        status = "reached, but not to be interpolated from dimension 0"
    else:
        # log d = log d0 + (target - v0) / (v1 - v0) (log d1 - log d0)
        part = (target - v[first - 1]) / (v[first] - v[first - 1])
        between = float(np.exp(np.log(d[first - 1]) + part * np.log(d[first] / d[first - 1])))
    if below > reached:
        status = f"reached, and lost again up to {below:g}"
    return Crossing(dim_below=below, dim_reached=reached, dim_interpolated=between, status=status)


def points(runs: pd.DataFrame, classes: int) -> pd.DataFrame:
    """One row a method, dimension and bits: bytes without head, accuracy over seeds and its three shares.

    ``runs``: a row a run, with ``method`` full and linear among them. Shares are those of the means over seeds.
    """
    keys = ["task", "label", "method", "dim", "bits", "scale", "lr", "weights_lr"]
    table = runs.groupby(keys, sort=False, as_index=False).agg(
        bytes=("adapter_bytes", "mean"),
        accuracy=("test_accuracy", "mean"),
        accuracy_se_seeds=("test_accuracy", "sem"),
        n_seeds=("seed", "size"),
    )
    of = _means(runs)
    for yardstick in YARDSTICKS:
        floor = _floor(yardstick, of, classes)
        table[f"share_{yardstick}"] = (table["accuracy"] - floor) / _gain(of["full"], floor)
    return table


def answers(runs: pd.DataFrame, classes: int, share: float) -> pd.DataFrame:
    """Where the subspace reaches ``share`` of full fine-tuning, for each seed and over seeds; what adapters take.

    Over seeds the bracket is that of the mean curve; the interpolated dimension is the geometric mean of the seeds'
    with a 95 % interval, if every seed has one. ``bytes`` are those of the first dimension that reaches the target.
    """
    import pandas as pd

    rows = []
    seeds = sorted(set(runs.loc[runs["method"] == "subspace", "seed"]))
    for yardstick in YARDSTICKS:
        single = [_subspace(runs[runs["seed"] == s], str(s), yardstick, classes, share) for s in seeds]
        pooled = _subspace(runs[runs["seed"].isin(seeds)], EVERY, yardstick, classes, share)
        rows += [*single, {**pooled, **_over_seeds([row["dim_interpolated"] for row in single])}]
        others = {"adapters": ~runs["method"].isin(["full", "linear", "subspace"]), "full": runs["method"] == "full"}
        rows += [_smallest(runs, chosen, of, yardstick, classes, share) for of, chosen in others.items()]
    return pd.DataFrame(rows)


def _subspace(runs: pd.DataFrame, seed: str, yardstick: str, classes: int, share: float) -> dict[str, Any]:
    """Of the runs of a seed, or of all: the curve from the head alone to the largest dimension against its target."""
    row = _row("subspace", seed, yardstick, runs, classes, share)
    if row["status"]:
        return row
    curve = runs[runs["method"].isin(["linear", "subspace"])].groupby("dim")[["test_accuracy", "adapter_bytes"]].mean()
    found = crossing(list(curve.index), list(curve["test_accuracy"]), row["target_accuracy"])
    size = math.nan if math.isnan(found.dim_reached) else curve["adapter_bytes"][int(found.dim_reached)]
    return {**row, **asdict(found), "bytes": size}


def _smallest(
    runs: pd.DataFrame, chosen: pd.Series, of: str, yardstick: str, classes: int, share: float
) -> dict[str, Any]:
    """Of some models the smallest file whose mean accuracy over seeds reaches the target."""
    row = _row(of, EVERY, yardstick, runs, classes, share)
    models = runs[chosen].groupby("label").agg(accuracy=("test_accuracy", "mean"), bytes=("adapter_bytes", "mean"))
    if row["status"]:
        return row
    if models.empty:
        return {**row, "status": "no such run given"}
    reached = models[models["accuracy"] >= row["target_accuracy"]].sort_values("bytes")
    if reached.empty:
        return {**row, "status": "not reached"}
    return {**row, "bytes": reached["bytes"].iloc[0], "label": reached.index[0], "status": "reached"}


def _row(of: str, seed: str, yardstick: str, runs: pd.DataFrame, classes: int, share: float) -> dict[str, Any]:
    """A row of the answer before anything is found, with the accuracy to reach; a status where there is none."""
    means = _means(runs)
    floor = _floor(yardstick, means, classes)
    # target = floor + share (full - floor)
    target = floor + share * _gain(means["full"], floor)
    return {
        "task": runs["task"].iloc[0],
        "yardstick": yardstick,
        "share": share,
        "target_accuracy": target,
        "model": of,
        "label": "",
        "seed": seed,
        "bytes": math.nan,
        **dict.fromkeys(("dim_below", "dim_reached", "dim_interpolated", "dim_low", "dim_high"), math.nan),
        "status": "full fine-tuning is not above the floor" if math.isnan(target) else "",
    }


def _over_seeds(dims: list[float]) -> dict[str, Any]:
    """Geometric mean of the interpolated dimensions and its interval; nothing where a seed has none."""
    from analyses.statistics import paired

    if any(math.isnan(d) for d in dims):
        return {"dim_interpolated": math.nan}
    found = paired(np.log(dims))
    low, high = (math.exp(end) if math.isfinite(end) else math.nan for end in (found.low, found.high))
    return {"dim_interpolated": math.exp(found.value), "dim_low": low, "dim_high": high}


def _means(runs: pd.DataFrame) -> dict[str, float]:
    """Mean accuracy of full fine-tuning and of the head alone."""
    return {m: float(runs.loc[runs["method"] == m, "test_accuracy"].mean()) for m in ("full", "linear")}


def _floor(yardstick: str, means: dict[str, float], classes: int) -> float:
    return {"of_full": 0.0, "above_chance": 1 / classes, "above_head": means["linear"]}[yardstick]


def _gain(full: float, floor: float) -> float:
    """What full fine-tuning gains on the floor; NaN where it gains nothing, so that no share of it can be taken."""
    return full - floor if full > floor else math.nan
