"""Loss surfaces on a plane of two directions: contours at the same levels in every panel, so that panels compare.

What is drawn is the rise over the centre. The levels go 1, 2, 5, 10, ... : a flat minimum has its rings far apart.
Where a surface sinks well below its centre, which is then no minimum of it, they go in equal steps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.bands import head_still, require
from figures.style import DARK, SPACE_NAMES, TWO_COLUMNS, letter, new_axes, new_figure, styled, with_unit
from figures.tables import TableError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.contour import QuadContourSet
    from matplotlib.figure import Figure

TABLES = {"surface": ("points",)}
COLUMNS = ["x", "y", "rise_nats"]
COLOURS = "cividis_r"
AXES = {
    "random": ("α, first direction", "α, second direction"),
    "eigenvectors": ("α, first eigenvector", "α, second eigenvector"),
}
# Share of the highest rise by which a surface may sink below its centre and still be drawn as a basin around it.
_SINKS = 0.05
# Levels in a decade, the first that make so many between the lowest and the highest rise.
_LADDERS = ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))
_FEWEST = 7


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw one panel for each label (and space, where a label has several), the first run of each."""
    chosen, panels_of = panels(tables["points"])
    axes_of = set(tables["points"]["axes"]) if "axes" in tables["points"] else set()
    first, second = AXES["eigenvectors" if axes_of == {"eigenvectors"} else "random"]
    shared = levels([z for *_, z in panels_of.values()])
    per_row = min(len(panels_of), 3)
    rows = math.ceil(len(panels_of) / per_row)
    width = TWO_COLUMNS if per_row > 1 else TWO_COLUMNS / 2
    lines = max(title.count("\n") for title in panels_of)
    fig = new_figure(width, 0.42 + rows * ((width - 0.95) / per_row + 0.05 + 0.11 * lines))
    axes = fig.subplots(rows, per_row, sharex=True, sharey=True, squeeze=False)
    for ax in list(axes.flat)[len(panels_of) :]:
        ax.remove()
    used = list(axes.flat)[: len(panels_of)]
    for ax, (title, (x, y, z)) in zip(used, panels_of.items(), strict=True):
        filled = contours(ax, x, y, z, shared)
        ax.set_title(title)
        ax.label_outer()
        below_is_empty = used.index(ax) + per_row >= len(used)
        ax.tick_params(labelbottom=below_is_empty)
        ax.set_xlabel(first if below_is_empty else "")
    for ax in axes[:, 0]:
        ax.set_ylabel(second)
    bar = fig.colorbar(filled, ax=used, shrink=0.84, aspect=26, pad=0.015, ticks=shared)
    bar.ax.set_yticklabels([f"{level:.2g}" for level in shared])
    bar.set_label(rise_of(chosen))
    bar.outline.set_linewidth(0.5)
    letter(used)
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None, *, unit: str = "nats") -> Axes:
    """Draw the contours of one surface on one pair of axes, with its own levels, labelled; ``unit`` of its loss."""
    chosen, found = panels(frame)
    title, (x, y, z) = next(iter(found.items()))
    # the name where there are others, which are not drawn
    named = f"{title}\n" if len(found) > 1 or "\n" in title else ""
    ax = new_axes(ax)
    label_inside(ax, contours(ax, x, y, z, levels([z]), lines_only=True), np.zeros((1, 2)))
    first, second = AXES["random"]
    ax.set(xlabel=first, ylabel=second, title=named + rise_of(chosen, unit))
    return ax


def rise_of(split: str, unit: str = "nats") -> str:
    """What is drawn, in words."""
    return with_unit(f"rise of the {split} loss", unit)


def panels(frame: pd.DataFrame) -> tuple[str, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """The split that is drawn; by panel title, coordinates (X,), (Y,) and the rise (Y, X). A missing cell is NaN.

    Of several runs of a label the first is drawn, and the title says so, as it says the space where they differ.
    """
    frame = head_still(require(frame, "surfaces", COLUMNS))
    split = ""
    if "split" in frame:
        split = "train" if "train" in set(frame["split"]) else str(frame["split"].iloc[0])
        frame = frame[frame["split"] == split]
    keys = ["label", "space"] if "space" in frame else ["label"]
    several = "space" in frame and frame["space"].nunique() > 1
    found = {}
    for key, group in frame.groupby(keys, sort=False):
        title, space = str(key[0]), str(key[-1])
        if several:
            title += f"\n{SPACE_NAMES.get(space, space)}"
        units = [unit for unit in ("seed", "run") if unit in group]
        runs = len(group[units].drop_duplicates()) if units else 1
        for unit in ("seed", "run", "direction"):
            if unit in group:
                group = group[group[unit] == min(group[unit])]
        cells = group.pivot_table(index="y", columns="x", values="rise_nats", dropna=False, aggfunc="first")
        if runs > 1:
            title += "\n" + (f"seed {group['seed'].iloc[0]}, " if "seed" in group else "") + f"one of {runs} runs"
        found[title] = (cells.columns.to_numpy(float), cells.index.to_numpy(float), cells.to_numpy(float))
    return {"train": "training"}.get(split, split), found


def span(surfaces: list[np.ndarray]) -> tuple[float, float]:
    """Lowest and highest finite rise of all surfaces; (0, highest) where they sink below the centre by next to nothing.

    Raises
    ------
    TableError
        If no cell differs from the centre: there is nothing to draw.
    """
    found = np.concatenate([np.zeros(1), *(z[np.isfinite(z)] for z in surfaces)])
    low, high = float(found.min()), float(found.max())
    if all(np.count_nonzero(np.isfinite(z)) < 2 for z in surfaces):
        cells = sum(z.size for z in surfaces)
        broken = sum(np.count_nonzero(~np.isfinite(z)) for z in surfaces)
        raise TableError(f"figure 'surfaces': the loss is inf or NaN in {broken} of {cells} cells")
    if low == high:
        raise TableError("figure 'surfaces': expected a loss that changes somewhere, found none beside the centre's")
    return (low if low < -_SINKS * high else 0.0), high


def levels(surfaces: list[np.ndarray], decades: float = 3.0) -> list[float]:
    """Levels 1, 2, 5, 10, ... common to all surfaces: from what is visible up to the largest finite rise.

    More of them in a decade where these are few: a steep basin in a plateau has its rises in one decade.

    Equal steps from the lowest value to the highest where a surface sinks well below its centre. Raises as
    :func:`span` does.
    """
    from matplotlib.ticker import MaxNLocator

    low, high = span(surfaces)
    if low < 0:
        ticks = [float(f"{s:.3g}") for s in MaxNLocator(9, steps=[1, 2, 5, 10]).tick_values(low, high)]
        equal = [tick for tick in ticks if low <= tick <= high]
        return equal if len(equal) > 1 else [low, high]
    rises = np.concatenate([z[np.isfinite(z) & (z > 0)] for z in surfaces])
    top = math.log10(high)
    bottom = max(top - decades, math.log10(float(rises.min())))
    inside: list[float] = []
    for ladder in _LADDERS:
        steps = [m * 10.0**e for e in range(math.floor(bottom), math.ceil(top) + 1) for m in ladder]
        inside = [float(f"{s:.3g}") for s in steps if bottom <= math.log10(s) <= top]
        if len(inside) >= _FEWEST:
            break
    return inside if len(inside) > 1 else [10**bottom, 10**top * (1 + 1e-9)]


def contours(
    ax: Axes, x: np.ndarray, y: np.ndarray, z: np.ndarray, shared: list[float], *, lines_only: bool = False
) -> QuadContourSet:
    """Contours at the given levels with a cross at the centre; NaN cells stay white."""
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import MaxNLocator

    logarithmic = shared[0] > 0
    norm = (LogNorm if logarithmic else Normalize)(shared[0], shared[-1])
    options: dict[str, Any] = {"levels": shared, "norm": norm, "cmap": COLOURS}
    # below the lowest level lies the basin itself, above the highest what no level separates
    floor = np.where(np.isfinite(z), np.maximum(z, shared[0] / 10) if logarithmic else z, np.nan)
    if not lines_only:
        drawn = ax.contourf(x, y, floor, extend="both", **options)
        ax.contour(x, y, floor, levels=shared, colors="white", linewidths=0.35, alpha=0.8)
    else:
        drawn = ax.contour(x, y, floor, **options, linewidths=0.8)
    ax.plot(0, 0, marker="+", color="#d55e00", ms=5, mew=1.0)
    ax.set_aspect("equal")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    return drawn


def label_inside(ax: Axes, drawn: QuadContourSet, avoid: np.ndarray) -> None:
    """Label each level once, where most is free around it of frame, other lines and the points ``avoid`` (N, 2).

    Where there is no such place, the level has no label. The axes have their final limits.
    """
    to_axes = (ax.transData - ax.transAxes).transform
    lines = [np.asarray(path.interpolated(4).vertices) for path in drawn.get_paths()]
    lines = [to_axes(line[:: max(1, len(line) // 150)]) for line in lines]
    taken, places = [to_axes(avoid)], []
    for i, line in enumerate(lines):
        if not len(line):
            continue
        free = np.minimum(line, 1 - line).min(axis=1) - 0.05  # half of a label's width
        for others in (*lines[:i], *lines[i + 1 :]):
            free = np.minimum(free, distances(line, others)) if len(others) else free
        free = np.minimum(free, distances(line, np.concatenate(taken)) / 3)  # of another label, its width
        best = int(free.argmax())
        if free[best] > 0.035:
            taken.append(line[best : best + 1])
            places.append(tuple(ax.transData.inverted().transform(ax.transAxes.transform(line[best]))))
    if places:
        ax.clabel(drawn, fontsize=6, fmt="%.3g", colors=DARK, manual=places, inline_spacing=3)


def distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """From each of the points (P, 2) to the nearest of the others (N, 2)."""
    return np.hypot(*(points[:, None] - others[None]).transpose(2, 0, 1)).min(axis=1)
