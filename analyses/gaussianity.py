"""How Gaussian are weights, how alike units, how far from chance spectra? ``python -m analyses.gaussianity FILE``.

Each matrix by itself (NUMERICS 25): effect sizes, not p-values; beside truly normal samples of the same size and beside
the same matrix at its initialisation, where that is known. No model is built but to draw a run's initial weights again.
Weights are not independent of each other, so every interval and difference of AIC is nominal.
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
    from collections.abc import Sequence

    import numpy as np
    import pandas as pd

    from analyses.checkpoint import Checkpoint
    from analyses.command import OnStep
    from analyses.store import Tables
    from analyses.weights import Held


@dataclass(frozen=True, kw_only=True)
class Fits:
    """What is computed for each matrix."""

    distortion_bits: tuple[int, ...] = (1, 2, 4)
    """Bit-widths at which the Gaussian codebook is held against the matrix's own exact optimum."""
    null_draws: int = 20
    """Truly normal samples of the same size that the distance is held against; fewer of large matrices, at least 3."""
    bins: int = 60
    """Bins of the pooled histogram, over five standard deviations on each side."""
    at_most: int = 65_536
    """Weights of a matrix that laws are fitted to; of a larger one so many are drawn."""
    alpha: float = 0.05
    """Chance, by the null, that any two of a pair of matrices' independent units are called dependent."""
    same: float = 0.9
    """Absolute cosine from which two dependent units count as one; a code agreement a has the cosine 2a - 1."""
    edge_confidence: float = 0.99
    """Chance, by the null, that no singular value of a random matrix lies above the edge."""


def describe(name: str, held: Held, spec: Fits, seed: int) -> dict[str, Any]:
    """The row of one matrix."""
    import numpy as np

    from quant.distribution import distortion_ratio_null, trained_share, w1_null

    w = held.tensors[name].double().numpy().ravel()
    first = held.initial.get(name)
    n = min(w.size, spec.at_most)
    chosen = np.arange(n) if n == w.size else np.random.default_rng(seed).choice(w.size, n, replace=False)
    draws = max(3, min(spec.null_draws, spec.null_draws * 25_000 // n))
    levels, bits = held.levels(name), spec.distortion_bits
    nothing = laws(np.zeros(2), spec)
    fitted = levels not in (1, 2)  # two values have no law
    row = {
        "weights": w.size,
        "fitted_weights": n,
        "levels": levels,
        "mean": float(w.mean()),
        "std": float(w.std(ddof=1)),
        **(laws(w[chosen], spec, codes=levels > 0) if fitted else nothing),
        # of n independent normal weights: 1.96 standard deviations of skew and of excess kurtosis
        "skew_nominal_95": 1.96 * math.sqrt(6 * (n - 2) / ((n + 1) * (n + 3))),
        "excess_kurtosis_nominal_95": 1.96
        * math.sqrt(24 * n * (n - 2) * max(n - 3, 0) / ((n + 1) ** 2 * (n + 3) * (n + 5))),
        "w1_sigma_null": w1_null(n, seed=seed, draws=draws) if fitted else math.nan,
        **{
            f"distortion_ratio_{b}b_null": distortion_ratio_null(n, b, seed=seed, draws=draws) if fitted else math.nan
            for b in bits
        },
    }
    before, share, cosine = nothing, math.nan, math.nan
    if first is not None and first.numel() == w.size:
        w_init = first.double().numpy().ravel()
        before, share = laws(w_init[chosen], spec), trained_share(w, w_init)
        norms = float(np.linalg.norm(w) * np.linalg.norm(w_init))
        cosine = float(w @ w_init) / norms if norms else math.nan
    return {
        **row,
        **{f"{key}_init": value for key, value in before.items()},
        "trained_share": share,
        "init_cosine": cosine,
        # of two random directions in n dimensions: E|cos| is sqrt(2 / (pi n)), nearly
        "init_cosine_null": math.sqrt(2 / (math.pi * w.size)),
    }


def laws(w: np.ndarray, spec: Fits, *, codes: bool = False) -> dict[str, Any]:
    """What is said of weights (n,) by themselves; NaN and empty texts of weights that are all equal.

    ``codes``: they lie on the few values of a grid, to which no density is fitted.
    """
    from scipy import stats

    from quant.distribution import distortion_ratio, fit_laws, w1_to_normal

    spread = bool(w.min() < w.max())
    found = fit_laws(w) if spread and not codes else None
    return {
        "skew": float(stats.skew(w)) if spread else math.nan,
        "excess_kurtosis": float(stats.kurtosis(w)) if spread else math.nan,
        "w1_sigma": w1_to_normal(w),
        "best_law": found["law"][0] if found else "",
        "best_shape": found["shape"][0] if found else math.nan,
        "normal_delta_aic_nominal": found["delta_aic"][found["law"].index("normal")] if found else math.nan,
        **{f"distortion_ratio_{b}b": distortion_ratio(w, b) if spread else math.nan for b in spec.distortion_bits},
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


def compute(source: Checkpoint | Held, options: Options, spec: Fits, on_step: OnStep) -> tuple[Tables, dict[str, Any]]:
    """The fits of one file's or run's matrices with their histogram, its units and its spectra."""
    import numpy as np
    import pandas as pd

    from analyses.measure import labelled
    from analyses.structure import spectrum_tables, unit_tables

    held = _held(source)
    rows, pooled = [], []
    for name in held.matrices:
        rows.append({"tensor": name, **describe(name, held, spec, options.seed)})
        w = held.tensors[name].double().numpy().ravel()
        if held.levels(name) not in (1, 2):
            pooled.append((w - w.mean()) / (w.std() or 1.0))
        if on_step:
            on_step()
    found = {"matrices": pd.DataFrame(rows)}
    if pooled:
        found["histogram"] = histogram(np.concatenate(pooled), spec.bins).assign(tensor="all")
    found |= spectrum_tables(held, confidence=spec.edge_confidence, seed=options.seed, on_step=on_step)
    found |= unit_tables(held, alpha=spec.alpha, same=spec.same)
    facts = {
        "measured": {"weights": held.kind, "initial": bool(held.initial), "seed": options.seed, "dtype": "float64"}
    }
    return {name: labelled(frame, held) for name, frame in found.items()}, facts


def _held(source: Checkpoint | Held) -> Held:
    """What a checkpoint holds.

    Raises
    ------
    AnalysisError
        If it is no run folder, or trains no matrix but its head.
    """
    from analyses.errors import AnalysisError
    from analyses.weights import Held, of_run

    if isinstance(source, Held):
        return source
    if source.run is None:
        raise AnalysisError(f"{source.path} is no run folder: its weights are opened by analyses.weights")
    held = of_run(source.run)
    if not held.matrices:
        raise AnalysisError(f"{source.label} trains no matrix but its head")
    return held


def _opened(paths: Sequence[Path], options: Options) -> tuple[list[Held], Path]:
    """Open, and say what each is and what is taken of it."""
    from analyses.store import announce
    from analyses.weights import open_weights

    opened, out = open_weights(paths, options)
    for held in opened:
        known = sum(name in held.initial for name in held.matrices)
        initial = f"{known} with their initial values" if known else "no initial values known"
        announce(
            options.quiet,
            f"{held.path.name}: {held.kind}; {len(held.matrices)} matrices, {initial}, {len(held.pairs())} pairs",
        )
    return opened, out


def findings(tables: Tables) -> list[str]:
    """Lines that sum up the tables, one for each file or run and question."""
    lines = []
    matrices, spectra = tables["matrices"], tables["spectra"]
    for label, rows in matrices.groupby("run", sort=False):
        fitted = rows[rows.best_law != ""]
        if len(fitted):
            m = fitted[["w1_sigma", "w1_sigma_null", "w1_sigma_init", "trained_share"]].median()
            best = ", ".join(f"{law} {count}" for law, count in fitted.best_law.value_counts().items())
            first, moved = "unknown", ""
            if not math.isnan(m.trained_share):
                first, moved = f"{m.w1_sigma_init:.3f}", f"; training moved {m.trained_share:.0%} of the variance"
            lines.append(
                f"{label}: W1/sigma {m.w1_sigma:.3f} (normal samples {m.w1_sigma_null:.3f}, initial {first}; medians); "
                f"best law: {best}{moved}"
            )
        for kind, part in spectra[spectra.run == label].groupby("kind", sort=False):
            ranks = part.effective_rank
            lines.append(
                f"{label}: effective rank of a {kind} {ranks.min():.1f} to {ranks.max():.1f}, median "
                f"{ranks.median():.1f} (random: {part.effective_rank_null.median():.1f})"
            )
        if "units" in tables:
            units = tables["units"][(tables["units"].run == label) & (tables["units"].side == "both")]
            if len(units):
                share = units[["dependent_pairs", "same_pairs"]].sum() / max(units["pairs"].sum(), 1)
                lines.append(
                    f"{label}: {share.dependent_pairs:.1%} of the pairs of units are dependent, {share.same_pairs:.1%} "
                    f"the same; of {units.units.median():g} units {units.different_units.median():g} differ (median)"
                )
    return lines


def _steps(held: Any, spec: Fits) -> int:
    return 2 * len(held.matrices)


ANALYSIS = Analysis(
    name="gaussianity",
    part="weights",
    compute=compute,
    shown=("matrices",),
    steps=_steps,
    unit="steps",
    assumed=lambda options, spec: "each matrix by itself, head left out where it is known; intervals are nominal",
    settings=lambda options: {"seed": options.seed},
    facts={"weights": "each matrix by itself, head left out where it is known", "intervals": "nominal"},
    opens=_opened,
)


def main(checkpoints: Positional[tuple[Path, ...]], /, options: Options = Options(), fits: Fits = Fits()) -> None:
    """Say how Gaussian the weights of every matrix are, how alike its hidden units, how far from chance its spectrum.

    Parameters
    ----------
    checkpoints
        Run folders, .lowbit, .safetensors, .pth or .npz files, peft folders, the paper's .bin beside its YAML.
    options
        What every analysis takes; of these --seed, --backbone (the weights that a file's training began with), --out.
    fits
        What is computed for each matrix.
    """
    from analyses.store import announce

    tables = ANALYSIS.run(checkpoints, options, fits)
    announce(options.quiet, *findings(tables))


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.gaussianity")
