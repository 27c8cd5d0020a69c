"""How alike the hidden units of low-rank pairs are: cosines of all pairs of units beside those of independent ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from figures.bands import require
from figures.style import DARK, TWO_COLUMNS, legend_below, letter, looks, new_axes, new_figure, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLES = {"gaussianity": ("agreement",)}
COLUMNS = ["side", "left", "right", "density", "null_density"]
SIDE = "both"  # a unit's row of the down matrix and its column of the up matrix together
FLOOR = 1e-3


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw a panel for each label; the height is logarithmic, since a few alike units matter."""
    frame = require(tables["agreement"], "units", COLUMNS)
    look = looks(frame)
    per_row = min(len(look), 4 if max(map(len, look)) < 28 else 2)
    rows = math.ceil(len(look) / per_row)
    fig = new_figure(TWO_COLUMNS if per_row > 1 else TWO_COLUMNS / 2, 0.5 + 1.75 * rows)
    axes = fig.subplots(rows, per_row, sharex=True, sharey=True, squeeze=False)
    for ax, label in zip(axes.flat, look, strict=False):
        histogram(ax, frame[frame["label"] == label], look[label]["color"])
        ax.set_title(label)
    for ax in list(axes.flat)[len(look) :]:
        ax.remove()
    used = list(axes.flat)[: len(look)]
    for ax in used[max(len(look) - per_row, 0) :]:
        ax.set_xlabel("cosine of two units")
        ax.tick_params(labelbottom=True)
    for row in axes:
        row[0].set_ylabel("density of pairs")
    letter(used)
    legend_below(fig, axes[0, 0], columns=2)
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the first label's histogram with its null on one pair of axes."""
    frame = require(frame, "units", COLUMNS)
    ax = new_axes(ax)
    histogram(ax, frame[frame["label"] == frame["label"].iloc[0]], DARK)
    ax.set(xlabel="cosine of two units", ylabel="density of pairs")
    ax.legend()
    return ax


def histogram(ax: Axes, bins: pd.DataFrame, colour: str) -> None:
    """Bars of all pairs of units, runs averaged, and the outline of the null."""
    bins = bins[bins["side"] == SIDE].groupby(["left", "right"], as_index=False)[["density", "null_density"]].mean()
    edges = [*bins["left"], bins["right"].iloc[-1]]
    ax.stairs(bins["density"], edges, fill=True, color=colour, alpha=0.45, lw=0, label="pairs of units")
    ax.stairs(bins["null_density"].clip(lower=FLOOR / 10), edges, color=DARK, lw=0.9, label="independent units")
    ax.set(
        yscale="log",
        xlim=(-1, 1),
        ylim=(FLOOR, 3 * max(float(bins["null_density"].max()), float(bins["density"].max()))),
    )
