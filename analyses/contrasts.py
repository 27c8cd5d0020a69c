"""What each claim compares: tables of measurements in, contrasts out (PAPER section 0, claims 1 to 4; NUMERICS 16).

Every task is a matter of its own: no contrast and no family crosses tasks. The *primary* family of a task holds the
primary endpoints of all claims, across methods and claims; everything else is in the *secondary* family:

- 1, flatter: primary in space ``full`` (all weights of both models move: literally the same disturbance); secondary in
  the method's own spaces. The rise of the training loss at the common radius, under each of the three radii.
- 2, Gaussian: primary for weights trained at 32 bits, which is what the claim speaks of; secondary for latent weights
  under quantisation-aware training.
- 3, precision: all primary.
- 4, equal bytes (bits x dim constant): primary 1 bit at dim 32 against 32 bits at dim 1; the other pairs secondary.

A configuration that is not in a table gives no contrast. Effects are oriented so that positive is good news for the
claim, but for the distortion ratio, of which less is better.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from analyses.errors import AnalysisError
from analyses.statistics import Comparison, Sample
from figures.tables import nearest

if TYPE_CHECKING:
    import pandas as pd

RADIUS_KINDS = ("alpha", "effective", "logit")
CODEBOOK_BITS = (1, 2, 4)
TRAINED_BITS = (1, 2, 4, 8)
ACCURACY_MARGIN = 0.01  # one accuracy point
RATIO_MARGIN = 0.05  # of the distortion ratio above 1
NO_ADAPTER = ("full", "linear")
SPACES = {"full": "all weights moving", "factors": "its own tensors moving", "merged": "its merged matrices moving"}


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One row of the claims before it is decided: the words, and the samples in ``comparison``.

    ``unit`` is that of the effect; ``replicate`` is what the samples hold one number of. ``space`` and ``radii`` are of
    claim 1 alone.
    """

    claim: int
    statement: str
    endpoint: str
    family: str
    unit: str
    task: str
    label: str
    comparison: Comparison
    replicate: str = "training seed"
    space: str = ""
    radii: Mapping[str, float] = field(default_factory=dict)


def flatter(rises: pd.DataFrame) -> list[Contrast]:
    """Claim 1 for every adapter in every space: full fine-tuning's rise minus the adapter's, in nats.

    Raises
    ------
    AnalysisError
        If a column is missing, or a task has more than one full fine-tuning.
    """
    found: list[Contrast] = []
    for task, frame in models(rises):
        full = frame.loc[frame["method"] == "full", "label"].unique()
        if len(full) > 1:
            raise AnalysisError(f"expected one full fine-tuning a task, found {', '.join(map(repr, full))}")
        for label in frame.loc[~frame["method"].isin(NO_ADAPTER), "label"].unique() if len(full) else ():
            found += against(frame, full[0], label, task)
    return found


def models(rises: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Each task with the rows that are compared.

    A head that moves is left out where one that stays still is there, the test split where there are several.
    """
    _need(rises, "flatness/summary", ["label", "method", "seed", "space", "radius_kind", "radius", "rise_nats"])
    rows = rises[~rises["head"].astype(bool)] if "head" in rises and not rises["head"].all() else rises
    rows = rows[rows["split"] == "train"] if "split" in rows else rows
    return list(_tasks(rows))


def against(rises: pd.DataFrame, reference: str, label: str, task: str = "") -> list[Contrast]:
    """The rise of ``reference`` minus that of ``label`` in each space that both have; ``rises`` is one of ``models``.

    Paired over training seeds, directions averaged first; where each has one checkpoint and the rows tell directions
    apart, the two sets of directions instead.
    """
    found = []
    ours, theirs = rises[rises["label"] == label], rises[rises["label"] == reference]
    for space in ours["space"].unique():
        a, b = theirs[theirs["space"] == space], ours[ours["space"] == space]
        if a.empty:
            continue
        single = "direction" in rises and a["seed"].nunique() == 1 and b["seed"].nunique() == 1
        parts: dict[str, Sample] = {}
        radii: dict[str, float] = {}
        for kind in RADIUS_KINDS:
            a_kind, b_kind = a[a["radius_kind"] == kind], b[b["radius_kind"] == kind]
            radii[kind] = _one_radius(a_kind, b_kind, f"{label} in space {space}, {kind}")
            parts[kind] = _sides(a_kind, b_kind) if single else _paired(a_kind, b_kind, "rise_nats")
        at = ", ".join(f"{kind} {radius:.4g}" for kind, radius in radii.items())
        found.append(
            Contrast(
                claim=1, task=task, label=label, space=space, radii=radii,
                statement=f"{label} ends in a flatter minimum than {reference}, {SPACES.get(space, space)}{_of(task)}",
                endpoint=f"rise of the training loss at the common radius ({at}), {reference} minus {label}",
                family=_family(space == "full", task), unit="nats",
                comparison=Comparison(parts=parts, kind="superiority"),
                replicate="direction (these two checkpoints only)" if single else "training seed",
            )
        )  # fmt: skip
    return found


def gaussian(matrices: pd.DataFrame) -> list[Contrast]:
    """Claim 2 for every adapter and codebook: distortion ratio over that of normal samples of the same size, minus 1.

    The mean over the adapter's matrices. The null divides out what the matrix's own optimum gains by being fitted to
    the weights it is judged on (NUMERICS 25).
    """
    _need(matrices, "gaussianity/matrices", ["label", "method", "bits", "seed", "tensor"])
    found = []
    for task, frame in _tasks(matrices):
        for label, rows in frame[~frame["method"].isin(NO_ADAPTER)].groupby("label", sort=False):
            _once(rows, ["seed", "tensor"])
            for bits in CODEBOOK_BITS:
                column = f"distortion_ratio_{bits}b"
                if column not in rows or rows[column].isna().all():
                    continue
                # matrices too small for an exact optimum at these bits hold NaN (NUMERICS 25): left out, in every seed
                ratio = (rows[column] / rows[f"{column}_null"]).dropna()
                ratios = ratio.groupby(rows["seed"]).mean().to_numpy(float)
                found.append(
                    Contrast(
                        claim=2, task=task, label=str(label),
                        statement=f"{label}: its matrices are on average close to Gaussian for a {bits}-bit codebook"
                        f"{_of(task)}",
                        endpoint=f"L1 error of the {bits}-bit Gaussian codebook over that of the matrix's own optimum, "
                        "relative to normal samples of that size, minus 1, mean over matrices",
                        family=_family(bool((rows["bits"] == 32).all()), task), unit="ratio minus 1",
                        comparison=Comparison(
                            parts={"": ratios - 1}, kind="non-inferiority", margin=RATIO_MARGIN, side="less"
                        ),
                    )
                )  # fmt: skip
    return found


def low_bits(points: pd.DataFrame) -> list[Contrast]:
    """Claim 3 for every method and dim: test accuracy at few bits minus that at 32, same dim, same seed."""
    _accuracies(points, "precision/points", [])
    found = []
    for task, frame in _tasks(points):
        for (method, dim), rows in frame.groupby(["method", "dim"], sort=False):
            reference = rows[rows["bits"] == 32]
            for bits in TRAINED_BITS:
                few = rows[rows["bits"] == bits]
                if few.empty or reference.empty:
                    continue
                label = _label(few)
                found.append(
                    Contrast(
                        claim=3, task=task, label=label,
                        statement=f"{label}: quantisation-aware training costs almost nothing{_of(task)}",
                        endpoint=f"test accuracy at {bits} bit minus at 32 bits, {method} at dim {dim}",
                        family=_family(True, task), unit="accuracy",
                        comparison=Comparison(
                            parts={"": _paired(few, reference, "test_accuracy")},
                            kind="non-inferiority", margin=ACCURACY_MARGIN,
                        ),
                    )
                )  # fmt: skip
    return found


def fewer_bits(points: pd.DataFrame) -> list[Contrast]:
    """Claim 4 for every method: test accuracy at 1 bit minus that at more bits and a dim lower by as much."""
    _accuracies(points, "tradeoff/points", ["adapter_bytes"])
    found = []
    for task, frame in _tasks(points):
        for (method, dim), one in frame[frame["bits"] == 1].groupby(["method", "dim"], sort=False):
            for bits in (32, 8, 4, 2):
                other = frame[(frame["method"] == method) & (frame["bits"] == bits) & (frame["dim"] * bits == dim)]
                if other.empty:
                    continue
                label, than = _label(one), _label(other)
                sizes = " against ".join(f"{side['adapter_bytes'].mean():,.0f}" for side in (one, other))
                found.append(
                    Contrast(
                        claim=4, task=task, label=label,
                        statement=f"{label} wins over {than} at equal bytes{_of(task)}",
                        endpoint=f"test accuracy of {label} minus that of {than}; adapter bytes {sizes}",
                        family=_family(bits == 32 and dim == 32, task), unit="accuracy",
                        comparison=Comparison(parts={"": _paired(one, other, "test_accuracy")}, kind="superiority"),
                    )
                )  # fmt: skip
    return found


def _tasks(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    if "task" not in frame:
        yield "", frame
        return
    for task in frame["task"].unique():
        yield str(task), frame[frame["task"] == task]


def _paired(a: pd.DataFrame, b: pd.DataFrame, column: str) -> np.ndarray:
    """``a`` minus ``b`` for each training seed that both have; several directions of a seed are averaged."""
    means = []
    for side in (a, b):
        _once(side, ["seed", "direction"] if "direction" in side else ["seed"])
        # numpy's mean: one direction whose rise is no number makes the seed's mean none, where pandas would skip it
        means.append({seed: rows.to_numpy(float).mean() for seed, rows in side.groupby("seed")[column]})
    left, right = means
    return np.array([left[seed] - right[seed] for seed in left if seed in right], dtype=float)


def _sides(a: pd.DataFrame, b: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The rises of two checkpoints, one a direction."""
    for side in (a, b):
        _once(side, ["seed", "direction"])
    return a["rise_nats"].to_numpy(float), b["rise_nats"].to_numpy(float)


def _once(rows: pd.DataFrame, keys: list[str]) -> None:
    twice = rows[rows.duplicated(keys)]
    if len(twice):
        found = ", ".join(f"{key} {twice.iloc[0][key]}" for key in keys)
        raise AnalysisError(
            f"expected one row of {_label(rows)} for each {' and '.join(keys)}, found several at {found}"
        )


def _one_radius(a: pd.DataFrame, b: pd.DataFrame, where: str) -> float:
    radii = np.concatenate([a["radius"], b["radius"]])
    if radii.size == 0:
        return float("nan")
    if not np.allclose(radii, radii[0], rtol=1e-9, atol=0):
        raise AnalysisError(f"expected one common radius for {where}, found {radii.min():.6g} to {radii.max():.6g}")
    return float(radii[0])


def _accuracies(points: pd.DataFrame, name: str, columns: list[str]) -> None:
    _need(points, name, ["method", "dim", "bits", "seed", "test_accuracy", *columns])
    if (points["test_accuracy"] > 1).any():
        raise AnalysisError(
            f"{name}: expected test_accuracy between 0 and 1, found {points['test_accuracy'].max():.6g}"
        )


def _need(frame: pd.DataFrame, name: str, columns: list[str]) -> None:
    there = [str(column) for column in frame.columns]
    for column in columns:
        if column not in there:
            raise AnalysisError(
                f"{name}: expected a column {column!r}, found {', '.join(there)}{nearest(column, there)}"
            )


def _label(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return str(first["label"]) if "label" in rows else f"{first['method']} {first['dim']}, {first['bits']} bit"


def _family(primary: bool, task: str) -> str:
    return f"{'primary' if primary else 'secondary'} endpoints" + (f", task {task}" if task else "")


def _of(task: str) -> str:
    return f" ({task})" if task else ""
