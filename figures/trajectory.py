"""Checkpoints in a plane through one of them, over the loss in it; the colour says what the plane leaves out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

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
NAMED = 8  # more checkpoints than that: only the first and the last are numbered and named


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw the checkpoints in their order, joined, over the rise of the loss where the table ``points`` is there."""
    key = _key(tables["checkpoints"])
    fig = new_figure(ONE_COLUMN * 1.25, 3.1 + 0.13 * math.ceil(len(key["labels"]) / key["ncols"]))
    ax = fig.subplots()
    dots = _draw(ax, tables["checkpoints"], tables.get("points"))
    bar = fig.colorbar(dots, ax=ax, shrink=0.84, aspect=26, pad=0.015)
    bar.set_label("squared displacement outside the plane (%)")
    bar.outline.set_linewidth(0.5)
    fig.legend(**key, loc="outside lower center")
    fig.draw_without_rendering()  # where the numbers go depends on the layout
    _number(ax, tables["checkpoints"])
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None, points: pd.DataFrame | None = None) -> Axes:
    """Draw the checkpoints on one pair of axes; ``points`` is a surface in the same plane."""
    ax = new_axes(ax)
    _draw(ax, frame, points)
    ax.legend(**_key(frame), loc="upper left", bbox_to_anchor=(0, -0.18))
    _number(ax, frame)
    return ax


def _draw(ax: Axes, frame: pd.DataFrame, points: pd.DataFrame | None) -> PathCollection:
    frame = require(frame, "trajectory", COLUMNS)
    title, lines = f"{_explained(frame):.1%} of the squared displacements lie in the plane", None
    if points is not None and len(points):
        split, found = surfaces.panels(points)
        x, y, z = next(iter(found.values()))
        if z[np.isfinite(z)].any():
            lines = surfaces.contours(ax, x, y, z, surfaces.levels([z]), lines_only=True)
            title = f"{surfaces.rise_of(split)}\n{title}"
        # The second direction is often much shorter than the first.
        ax.set_aspect("auto")
    ax.plot(frame["x"], frame["y"], color=GREY, lw=0.8, zorder=3)
    dots = ax.scatter(
        frame["x"], frame["y"], c=100 * frame["outside_share"], cmap="magma_r", vmin=0, vmax=100, s=16,
        edgecolors=DARK, linewidths=0.5, zorder=4,
    )  # fmt: skip
    ax.margins(0.15)
    unit = "distance in weights" if _orthonormal(frame) else "coordinate"
    ax.set(xlabel=f"{unit}, first direction", ylabel=f"{unit}, second direction", title=title)
    if lines is not None:
        surfaces.label_inside(ax, lines, _way(frame))
    return dots


def _named(frame: pd.DataFrame) -> list[int]:
    return list(range(len(frame))) if len(frame) <= NAMED else [0, len(frame) - 1]


def _key(frame: pd.DataFrame) -> dict[str, Any]:
    """Which number is which checkpoint: what a legend takes."""
    from matplotlib.lines import Line2D

    frame = require(frame, "trajectory", COLUMNS)
    names = [f"{i + 1}  {frame['checkpoint'].iloc[i]}" for i in _named(frame)]
    columns = min(len(names), 4, max(1, 72 // (max(map(len, names)) + 4)))
    handles = [Line2D([], [], ls="") for _ in names]
    return {"handles": handles, "labels": names, "ncols": columns, "handlelength": 0, "handletextpad": 0}


def _number(ax: Axes, frame: pd.DataFrame) -> None:
    """Write each number where most is free near its dot: of the way, the dots, and the numbers and labels so far."""
    from matplotlib.transforms import Affine2D

    to_points = ax.transData + Affine2D().scale(72 / ax.figure.dpi)
    dots, way = to_points.transform(frame[["x", "y"]].to_numpy(float)), to_points.transform(_way(frame))
    texts = [to_points.transform(text.get_position())[None] for text in ax.texts]
    angles = np.arange(16) * np.pi / 8 + np.pi / 2
    steps = np.concatenate([r * np.column_stack([np.cos(angles), np.sin(angles)]) for r in (6, 9, 13, 18)])
    for i in _named(frame):
        place = (frame["x"].iloc[i], frame["y"].iloc[i])
        free = np.minimum(surfaces.distances(dots[i] + steps, way), 5)
        if texts:
            free = np.minimum(free, surfaces.distances(dots[i] + steps, np.concatenate(texts)) - 3)
        best = steps[(free - 0.15 * np.hypot(*steps.T)).argmax()]
        far = {"arrowstyle": "-", "lw": 0.3, "shrinkA": 0, "shrinkB": 2} if np.hypot(*best) > 8 else None
        ax.annotate(
            str(i + 1), place, xytext=best, textcoords="offset points", ha="center", va="center", fontsize=6, zorder=5,
            arrowprops=far,
        )  # fmt: skip
        texts.append((dots[i] + best)[None])


def _way(frame: pd.DataFrame) -> np.ndarray:
    """Points (N, 2) of the line through all checkpoints."""
    from matplotlib.path import Path

    return np.asarray(Path(frame[["x", "y"]].to_numpy(float)).interpolated(20).vertices)


def _orthonormal(frame: pd.DataFrame) -> bool:
    """Whether a distance in the plane is one between weights: given directions may have any norms and angle."""
    inside = frame["norm"] ** 2 * (1 - frame["outside_share"])
    return np.allclose(frame["x"] ** 2 + frame["y"] ** 2, inside, rtol=1e-3, atol=1e-6 * float(inside.max()))


def _explained(frame: pd.DataFrame) -> float:
    """Share of all squared displacements together that lies in the plane; all of them where nothing moved."""
    squared = frame["norm"] ** 2
    return 1.0 - float((frame["outside_share"] * squared).sum() / squared.sum()) if squared.any() else 1.0
