"""The same loss surfaces in relief: all panels with one height scale and one viewpoint."""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.style import TWO_COLUMNS, new_figure, styled
from figures.surfaces import COLOURS, panels, rise_of, span

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

TABLES = {"surface": ("points",)}


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw one relief for each label (and space, where a label has several), the first run of each."""
    import_module("mpl_toolkits.mplot3d")  # registers the projection

    chosen, found = panels(tables["points"])
    per_row = min(len(found), 3)
    rows = math.ceil(len(found) / per_row)
    width = TWO_COLUMNS if per_row > 1 else TWO_COLUMNS / 2
    height = 0.92 * width / per_row
    fig = new_figure(width, rows * height, layout=None)
    heights = span([z for *_, z in found.values()])
    for place, (title, (x, y, z)) in enumerate(found.items()):
        row, column = divmod(place, per_row)
        box = (column / per_row - 0.02, 1 - (row + 0.99) / rows, 0.99 / per_row, 0.98 / rows)
        ax: Any = fig.add_axes(box, projection="3d")
        relief(ax, x, y, z, heights)
        fig.text((column + 0.5) / per_row, 1 - (row + 0.02) / rows, title, va="top", ha="center")
        if column == per_row - 1 or place == len(found) - 1:
            ax.set_zlabel(rise_of(chosen))
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Any = None) -> Any:
    """Draw one surface in relief on 3-D axes (new ones by default)."""
    import_module("mpl_toolkits.mplot3d")

    chosen, found = panels(frame)
    x, y, z = next(iter(found.values()))
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.figure(figsize=(3.6, 3.2)).add_subplot(projection="3d")
    relief(ax, x, y, z, span([z]))
    ax.set_zlabel(rise_of(chosen))
    return ax


def relief(ax: Any, x: np.ndarray, y: np.ndarray, z: np.ndarray, heights: tuple[float, float]) -> None:
    """A surface with hairline mesh, its height and colour between ``heights``; what is not finite is left out."""
    from matplotlib.colors import Normalize

    height = np.where(np.isfinite(z), z, np.nan)
    grid_x, grid_y = np.meshgrid(x, y)
    ax.plot_surface(
        grid_x, grid_y, height, cmap=COLOURS, norm=Normalize(*heights), rcount=len(y), ccount=len(x), linewidth=0.15,
        edgecolor=(1, 1, 1, 0.5), antialiased=True, rasterized=False,
    )  # fmt: skip
    ax.set(xlabel="α, first", ylabel="α, second", zlim=heights)
    ax.view_init(elev=26, azim=-58)
    ax.set_box_aspect((1, 1, 0.75), zoom=0.82)
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.pane.set_alpha(0.0)
        axis.line.set_linewidth(0.5)
        axis._axinfo["grid"].update(linewidth=0.3, color="#cccccc")
        axis.set_tick_params(pad=-2, labelsize=6)
        axis.labelpad = -6
    ax.xaxis.set_major_locator(_few())
    ax.yaxis.set_major_locator(_few())
    ax.zaxis.set_major_locator(_few())


def _few() -> Locator:
    """At most four intervals: ticks of a small relief overlap otherwise."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4, steps=[1, 2, 5, 10])
