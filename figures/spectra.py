"""Singular values of weight matrices against the Marchenko-Pastur law: what random entries of that variance would give.

A panel for each shape of matrix and label; those at initialisation beside them, where they are known.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from figures.bands import require
from figures.style import (
    DARK,
    GREY,
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

TABLES = {"gaussianity": ("spectrum",)}
COLUMNS = ["shape", "matrices", "left", "right", "density", "mp_density"]
MOST = 12  # panels


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw a panel for each label and shape, the shapes with most matrices first if there are too many."""
    frame = require(tables["spectrum"], "spectra", COLUMNS)
    look = looks(frame)
    panels = list(frame.groupby(["label", "shape"], sort=False))
    panels = sorted(panels, key=lambda panel: -int(panel[1]["matrices"].max()))[:MOST] if len(panels) > MOST else panels
    per_row = min(len(panels), 4 if max(map(len, look)) < 28 else 2)
    rows = math.ceil(len(panels) / per_row)
    fig = new_figure(TWO_COLUMNS if per_row > 1 else TWO_COLUMNS / 2, 0.5 + 1.75 * rows)
    axes = fig.subplots(rows, per_row, squeeze=False)
    for ax, ((label, shape), part) in zip(axes.flat, panels, strict=False):
        histogram(ax, part, look[str(label)]["color"])
        ax.set_title(label)
        text = f"{int(part['matrices'].max())} of {shape}"
        ax.annotate(text, (0.97, 0.97), xycoords="axes fraction", ha="right", va="top")
    for row in axes:
        row[0].set_ylabel("density")
    for ax in list(axes.flat)[len(panels) :]:
        ax.remove()
    for ax in list(axes.flat)[max(len(panels) - per_row, 0) : len(panels)]:
        ax.set_xlabel("singular value (σ√M)")
    letter(list(axes.flat)[: len(panels)])
    legend_below(fig, next((ax for ax in axes.flat if len(ax.patches) > 1), axes[0, 0]), columns=3)
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the spectrum of the first label's first shape on one pair of axes."""
    frame = require(frame, "spectra", COLUMNS)
    first = frame.iloc[0]
    ax = new_axes(ax)
    histogram(ax, frame[(frame["label"] == first["label"]) & (frame["shape"] == first["shape"])], DARK)
    ax.set(xlabel="singular value (σ√M)", ylabel="density")
    ax.legend()
    return ax


def histogram(ax: Axes, bins: pd.DataFrame, colour: str) -> None:
    """The trained matrices' histogram, the initial ones' outline and the law's line; the runs of a label averaged."""
    columns = ["density", "mp_density", *(["density_init"] if "density_init" in bins else [])]
    first = bins[bins["run"] == bins["run"].iloc[0]] if "run" in bins else bins
    if "run" in bins and bins["run"].nunique() > 1:  # each run has edges of its own
        bins = first.assign(**{c: _on(first, bins, c) for c in columns})
    edges = [*bins["left"], bins["right"].iloc[-1]]
    ax.stairs(
        bins["density"],
        edges,
        fill=True,
        color=colour,
        alpha=0.45,
        lw=0,
        label="trained",
    )
    if "density_init" in bins and bins["density_init"].notna().all():
        ax.stairs(bins["density_init"], edges, color=GREY, lw=0.8, label="at initialisation")
    ax.plot((bins["left"] + bins["right"]) / 2, bins["mp_density"], color=DARK, lw=0.9, label="Marchenko-Pastur")
    # bars beyond the law's own height (equal values at the start) are cut, spikes beyond its edge stay in sight
    ax.set_ylim(0, 1.6 * float(bins["mp_density"].max()))


def _on(first: pd.DataFrame, bins: pd.DataFrame, column: str) -> list[float]:
    """The mean over runs of a density, each read at the middles of the first run's bins."""
    import numpy as np

    middles = ((first["left"] + first["right"]) / 2).to_numpy()
    read = [
        np.interp(middles, (part["left"] + part["right"]) / 2, part[column], left=0.0, right=0.0)
        for _, part in bins.groupby("run", sort=False)
    ]
    return list(np.mean(read, axis=0))
