"""Trained weights against the normal law: a histogram a label, and how far each matrix is from normal.

The distance is Wasserstein-1 in sigma. It is drawn beside what truly normal samples of the same sizes give and beside
the same matrices at initialisation, since after a short recipe a fit mostly sees the initialisation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from figures.bands import require
from figures.style import (
    DARK,
    GREY,
    METHOD_COLOURS,
    TWO_COLUMNS,
    legend_below,
    letter,
    looks,
    new_axes,
    new_figure,
    styled,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLES = {"gaussianity": ("histogram", "matrices")}
POOLED = "all"
DISTANCES = {
    "w1_sigma": ("trained", "-", None),
    "w1_sigma_init": ("at initialisation", (0, (4, 1.5)), GREY),
    "w1_sigma_null": ("normal samples of the same sizes", (0, (1.2, 1.2)), DARK),
}


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw, for each label, the pooled standardised weights with the normal density, and the matrices' distances."""
    bins = require(tables["histogram"], "weights", ["left", "right", "density", "normal_density"])
    matrices = require(tables["matrices"], "weights", ["tensor", *DISTANCES])
    pooled = bins[bins["tensor"] == POOLED] if "tensor" in bins else bins
    look = looks(matrices)
    labels = [label for label in dict.fromkeys(pooled["label"]) if label in look]
    per_row = min(len(labels), 4)
    blocks = math.ceil(len(labels) / per_row)
    fig = new_figure(TWO_COLUMNS if per_row > 1 else TWO_COLUMNS / 2, 0.45 + 2.9 * blocks)
    axes = fig.subplots(2 * blocks, per_row, squeeze=False)
    for place, label in enumerate(labels):
        row, column = 2 * (place // per_row), place % per_row
        above, below = axes[row, column], axes[row + 1, column]
        colour = look[label]["color"]
        histogram(above, pooled[pooled["label"] == label], colour)
        above.set_title(label)
        distances(below, matrices[matrices["label"] == label], colour)
        if column == 0:
            above.set_ylabel("density")
            below.set_ylabel("share of the matrices")
        else:
            above.tick_params(labelleft=False)
            below.tick_params(labelleft=False)
    used = [ax for i in range(blocks) for row in (2 * i, 2 * i + 1) for ax in axes[row][: len(labels) - i * per_row]]
    for ax in set(axes.flat) - set(used):
        ax.remove()
    for kind in (0, 1):
        _share([ax for i in range(blocks) for ax in axes[2 * i + kind] if ax in used])
    letter(used)
    legend_below(fig, axes[1, 0], columns=4)
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the histogram of one tensor (the pooled one, if there) with the normal density on one pair of axes."""
    frame = require(frame, "weights", ["left", "right", "density", "normal_density"])
    frame = frame[frame["label"] == frame["label"].iloc[0]]
    if "tensor" in frame:
        tensors = list(frame["tensor"])
        frame = frame[frame["tensor"] == (POOLED if POOLED in tensors else tensors[0])]
    ax = new_axes(ax)
    histogram(ax, frame, METHOD_COLOURS["adaptformer"])
    ax.set_ylabel("density")
    return ax


def histogram(ax: Axes, bins: pd.DataFrame, colour: str) -> None:
    """Bars of the weights' density and, as a line through the bins' middles, the normal's."""
    bins = bins.groupby(["left", "right"], as_index=False)[["density", "normal_density"]].mean()  # over runs
    left, right = bins["left"].to_numpy(), bins["right"].to_numpy()
    ax.stairs(bins["density"].to_numpy(), [*left, right[-1]], fill=True, color=colour, alpha=0.45, lw=0)
    ax.plot((left + right) / 2, bins["normal_density"].to_numpy(), color=DARK, lw=0.9, label="normal density")
    ax.set_xlabel("weight (σ of its matrix)")
    ax.set_ylim(bottom=0)


def distances(ax: Axes, matrices: pd.DataFrame, colour: str) -> None:
    """Share of the matrices at or below each distance: trained, at initialisation, and of normal samples."""
    import numpy as np
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.plot([], [], color=DARK, lw=0.9, label="normal density")
    for column, (text, dashes, other) in DISTANCES.items():
        values = np.sort(matrices[column].to_numpy(dtype=float))
        values = values[np.isfinite(values) & (values > 0)]
        if values.size:
            share = np.arange(1, values.size + 1) / values.size
            # the curve starts at 0 where the first matrix lies
            ax.step([values[0], *values], [0, *share], where="post", color=other or colour, ls=dashes, label=text)
    ax.set(xscale="log", ylim=(0, 1.03), xlabel="distance from normal, W₁ (σ)")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def _share(same: list[Axes]) -> None:
    """One scale for all of these."""
    for ax in same[1:]:
        ax.sharex(same[0])
        ax.sharey(same[0])
    same[0].autoscale()
