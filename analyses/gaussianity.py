"""How Gaussian are the weights, and what does it cost? ``python -m analyses.gaussianity RUN [RUN ...]``.

Each matrix that the method trains, by itself (NUMERICS 25): effect sizes, not p-values; beside truly normal samples of
the same size and beside the same matrix at its initialisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from analyses.command import Analysis
from analyses.options import Options

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import pandas as pd

    from analyses.checkpoint import Checkpoint
    from analyses.command import OnStep
    from analyses.store import Tables


@dataclass(frozen=True, kw_only=True)
class Fits:
    """What is computed for each matrix."""

    distortion_bits: tuple[int, ...] = (1, 2, 4)
    """Bit-widths at which the Gaussian codebook is held against the matrix's own exact optimum."""
    null_draws: int = 20
    """Truly normal samples of the same size that the distance is held against."""
    bins: int = 60
    """Bins of the pooled histogram, over five standard deviations on each side."""


def matrices(checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, latent weights and initial weights of every matrix that the method trains, head left out.

    Yields
    ------
    name, w (n,), w_init (n,)
        In float64.

    Raises
    ------
    AnalysisError
        If the checkpoint is no run folder (nothing else knows its initialisation) or its method trains no matrix.
    """
    from analyses.errors import AnalysisError
    from train.methods import head_names

    if checkpoint.run is None:
        raise AnalysisError(
            f"{checkpoint.path} is no run folder: gaussianity needs the initial weights beside the final ones"
        )
    latent, initial = checkpoint.run.trained_state(), checkpoint.run.initial_state()
    head = set(head_names(checkpoint.model))
    names = [n for n, w in latent.items() if w.ndim > 1 and w.numel() > w.shape[0] and n not in head]
    if not names:
        raise AnalysisError(f"{checkpoint.label} trains no matrix but its head")
    for name in names:
        yield name, latent[name].double().numpy().ravel(), initial[name].double().numpy().ravel()


def describe(w: np.ndarray, w_init: np.ndarray, spec: Fits, seed: int) -> dict[str, Any]:
    """The row of one matrix."""
    from scipy import stats

    from quant.distribution import (
        best_law,
        distortion_ratio,
        distortion_ratio_null,
        trained_share,
        w1_null,
        w1_to_normal,
    )

    return {
        "weights": w.size,
        "mean": float(w.mean()),
        "std": float(w.std(ddof=1)),
        "skew": float(stats.skew(w)),
        "excess_kurtosis": float(stats.kurtosis(w)),
        "w1_sigma": w1_to_normal(w),
        "w1_sigma_null": w1_null(w.size, seed=seed, draws=spec.null_draws),
        "w1_sigma_init": w1_to_normal(w_init) if w_init.std() else float("nan"),
        "trained_share": trained_share(w, w_init),
        "best_law": best_law(w),
        **{f"distortion_ratio_{b}b": distortion_ratio(w, b) for b in spec.distortion_bits},
        **{
            f"distortion_ratio_{b}b_null": distortion_ratio_null(w.size, b, seed=seed, draws=spec.null_draws)
            for b in spec.distortion_bits
        },
    }


def histogram(standardised: np.ndarray, bins: int) -> pd.DataFrame:
    """Density of the pooled weights, each matrix standardised by itself, beside the standard normal's."""
    import numpy as np
    import pandas as pd
    from scipy import stats

    edges = np.linspace(-5, 5, bins + 1)
    counts, _ = np.histogram(standardised, edges)
    density = counts / (standardised.size * np.diff(edges))
    normal = np.diff(stats.norm.cdf(edges)) / np.diff(edges)
    return pd.DataFrame({"left": edges[:-1], "right": edges[1:], "density": density, "normal_density": normal})


def compute(checkpoint: Checkpoint, options: Options, spec: Fits, on_step: OnStep) -> tuple[Tables, dict[str, Any]]:
    """The fits of one run's matrices, and the histogram of all of them."""
    import numpy as np
    import pandas as pd

    from analyses.measure import labelled

    rows, pooled = [], []
    for name, w, w_init in matrices(checkpoint):
        rows.append({"tensor": name, **describe(w, w_init, spec, options.seed)})
        pooled.append((w - w.mean()) / (w.std() or 1.0))
    bars = histogram(np.concatenate(pooled), spec.bins)
    if on_step:
        on_step()
    return {
        "matrices": labelled(pd.DataFrame(rows), checkpoint),
        "histogram": labelled(bars, checkpoint, tensor="all"),
    }, {}


ANALYSIS = Analysis(
    name="gaussianity",
    part="weights",
    compute=compute,
    shown=("matrices",),
    steps=lambda checkpoint, spec: 1,
    unit="runs",
    assumed=lambda options, spec: "latent weights, each matrix by itself, head left out",
    settings=lambda options: {"seed": options.seed},
    facts={"weights": "latent, head left out"},
)


def main(checkpoints: Positional[tuple[Path, ...]], /, options: Options = Options(), fits: Fits = Fits()) -> None:
    """Fit the weights of every trained matrix and say what the Gaussian codebook loses on it.

    Parameters
    ----------
    checkpoints
        Run folders, or weights of whole networks with --backbone and --task.
    options
        What every analysis takes.
    fits
        What is computed for each matrix.
    """
    ANALYSIS.run(checkpoints, options, fits)


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.gaussianity")
