"""Accuracy against bits at fixed dim, and the change from 32 bits with the margin that was fixed in advance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures.bands import Band, over_text, require
from figures.style import (
    DASHES,
    GREY,
    MARKERS,
    METHOD_NAMES,
    TWO_COLUMNS,
    bits_axis,
    legend_below,
    letter,
    method_colour,
    new_axes,
    new_figure,
    styled,
)  # fmt: skip
from figures.tradeoff import seeds_and_mean

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLES = {"precision": ("points",)}
COLUMNS = ["method", "dim", "bits", "seed", "test_accuracy"]
REFERENCE = 32
MARGIN = 1.0  # accuracy points: what "costs almost nothing" means


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw accuracy (left) and, paired by seed, its change from 32 bits (right); a line for each method and dim."""
    frame = require(tables["points"], "precision", COLUMNS)
    paired = changes(frame)
    fig = new_figure(TWO_COLUMNS if len(paired) else TWO_COLUMNS / 2, 2.5)
    axes = fig.subplots(1, 2 if len(paired) else 1, squeeze=False)[0]
    drawn = series(axes[0], frame, "test_accuracy")
    axes[0].set_ylabel("test accuracy (%)")
    if len(paired):
        drawn += series(axes[1], paired, "change")
        margin(axes[1])
        axes[1].set_ylabel(f"change from {REFERENCE} bits (points)")
    letter(list(axes))
    legend_below(fig, axes[-1], over_text(drawn), columns=4)
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw accuracy against bits on one pair of axes, a line for each method and dim."""
    ax = new_axes(ax)
    drawn = series(ax, require(frame, "precision", COLUMNS), "test_accuracy")
    ax.set_ylabel("test accuracy (%)")
    ax.legend(title=over_text(drawn))
    return ax


def changes(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows below 32 bits with ``change``: their accuracy less that of 32 bits of the same method, dim and seed."""
    pair = [key for key in ("task", "method", "dim", "seed") if key in frame]
    reference = frame[frame["bits"] == REFERENCE][[*pair, "test_accuracy"]].rename(
        columns={"test_accuracy": "at_reference"}
    )
    both = frame[frame["bits"] != REFERENCE].merge(reference, on=pair)
    return both.assign(change=both["test_accuracy"] - both["at_reference"])


def series(ax: Axes, frame: pd.DataFrame, value: str) -> list[Band]:
    """A line for each method and dim, set a little apart so that their error bars do not cover one another."""
    groups = [(str(m), int(str(d)), group) for (m, d), group in frame.groupby(["method", "dim"], sort=False)]
    dims: dict[str, int] = {}
    drawn = []
    for place, (method, dim, group) in enumerate(groups):
        shift = 2 ** (0.14 * (place - (len(groups) - 1) / 2))
        turn = dims.setdefault(method, 0)
        dims[method] += 1
        text = f"{METHOD_NAMES.get(method, method)}, dim {dim}"
        style = {"ls": DASHES[turn % len(DASHES)], "marker": MARKERS[turn % len(MARKERS)]}
        drawn.append(seeds_and_mean(ax, group, method_colour(method), text, value=value, shift=shift, **style))
    bits_axis(ax, [int(b) for b in frame["bits"]])
    return drawn


def margin(ax: Axes) -> None:
    """Zero and the margin of one accuracy point, below which bits would cost more than almost nothing."""
    ax.axhline(0, color=GREY, lw=0.6, zorder=0)
    ax.axhline(-MARGIN, color=GREY, lw=0.8, ls=":", zorder=0, label=f"margin, {MARGIN:g} point")
