"""Checkpoints in a plane through one of them, over the loss in it; the colour says what the plane leaves out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from figures import surfaces
from figures.bands import require
from figures.style import DARK, GREY, ONE_COLUMN, new_axes, new_figure, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

TABLES = {"trajectory": ("checkpoints", "points"), "connectivity": ("checkpoints", "points")}
COLUMNS = ["checkpoint", "x", "y", "norm", "outside_share"]
NAMED = 8  # more checkpoints than that: only the first and the last are named


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw the checkpoints in their order, joined, over the rise of the loss where the table ``points`` is there."""
    fig = new_figure(ONE_COLUMN * 1.25, 3.1)
    ax = fig.subplots()
    dots = _draw(ax, tables["checkpoints"], tables.get("points"))
    bar = fig.colorbar(dots, ax=ax, shrink=0.84, aspect=26, pad=0.015)
    bar.set_label("squared displacement outside the plane (%)")
    bar.outline.set_linewidth(0.5)
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None, points: pd.DataFrame | None = None) -> Axes:
    """Draw the checkpoints on one pair of axes; ``points`` is a surface in the same plane."""
    ax = new_axes(ax)
    _draw(ax, frame, points)
    return ax


def _draw(ax: Axes, frame: pd.DataFrame, points: pd.DataFrame | None) -> PathCollection:
    frame = require(frame, "trajectory", COLUMNS)
    title = f"{_explained(frame):.1%} of the squared displacements lie in the plane"
    if points is not None and len(points):
        split, found = surfaces.panels(points)
        x, y, z = next(iter(found.values()))
        if z[np.isfinite(z)].any():
            ax.clabel(surfaces.contours(ax, x, y, z, surfaces.levels([z]), lines_only=True), fontsize=5)
            title = f"{surfaces.rise_of(split)}\n{title}"
        # The second direction is often much shorter than the first.
        ax.set_aspect("auto")
    ax.plot(frame["x"], frame["y"], color=GREY, lw=0.8, zorder=3)
    dots = ax.scatter(
        frame["x"], frame["y"], c=100 * frame["outside_share"], cmap="magma_r", vmin=0, vmax=100, s=20,
        edgecolors=DARK, linewidths=0.5, zorder=4,
    )  # fmt: skip
    rows, middle = frame.to_dict("records"), (frame["x"].min() + frame["x"].max()) / 2
    for row in rows if len(rows) <= NAMED else (rows[0], rows[-1]):
        side, step = ("right", -4) if row["x"] > middle else ("left", 4)
        ax.annotate(
            str(row["checkpoint"]), (row["x"], row["y"]), xytext=(step, 4), textcoords="offset points", ha=side,
            fontsize=5.5, zorder=5,
        )  # fmt: skip
    ax.margins(0.15)
    ax.set(xlabel="first direction", ylabel="second direction", title=title)
    return dots


def _explained(frame: pd.DataFrame) -> float:
    """Share of all squared displacements together that lies in the plane; all of them where nothing moved."""
    squared = frame["norm"] ** 2
    return 1.0 - float((frame["outside_share"] * squared).sum() / squared.sum()) if squared.any() else 1.0
