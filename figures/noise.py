"""Accuracy under random noise on the weights, against the size of the noise: one column a space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures.bands import head_still, ordered, over_text, own_space, require
from figures.curves import SPACES, lines
from figures.style import (
    SPACE_NAMES,
    TWO_COLUMNS,
    legend_below,
    letter,
    looks,
    new_axes,
    new_figure,
    percent_axis,
    styled,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLES = {"noise": ("points",)}
XLABEL = "noise α, in norms of each filter"


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw accuracy on the test images (else on those there are)."""
    frame = require(tables["points"], "noise", ["alpha", "space", "split", "accuracy"])
    frame = own_space(head_still(frame))
    split = "test" if "test" in set(frame["split"]) else str(frame["split"].iloc[0])
    frame = frame[frame["split"] == split]
    look = looks(frame)
    spaces = ordered(frame, "space", SPACES)
    fig = new_figure(TWO_COLUMNS if len(spaces) > 1 else TWO_COLUMNS / 2, 2.4)
    panels = fig.subplots(1, len(spaces), sharey=True, squeeze=False)[0]
    drawn = []
    for ax, space in zip(panels, spaces, strict=True):
        part = frame[frame["space"] == space]
        drawn += lines(ax, part, "alpha", "accuracy", "accuracy_se", unit=100.0, look=look, marked=True)
        ax.set_title(SPACE_NAMES.get(space, space))
        ax.set_xlabel(XLABEL)
    panels[0].set_ylabel(f"{split} accuracy (%)")
    percent_axis(panels[0])
    letter(list(panels))
    legend_below(fig, panels[-1], over_text(drawn))
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw accuracy against noise on one pair of axes, a line for each label, split and space that the frame holds."""
    frame = require(frame, "noise", ["alpha", "accuracy"])
    ax = new_axes(ax)
    keys = [key for key in ("label", "space", "split") if key in frame and frame[key].nunique() > 1]
    if keys:
        frame = frame.assign(label=frame[keys].agg(", ".join, axis=1))
    drawn = lines(ax, frame, "alpha", "accuracy", "accuracy_se", unit=100.0, look=looks(frame), marked=True)
    ax.set(xlabel=XLABEL, ylabel="accuracy (%)")
    if keys:
        ax.legend(title=over_text(drawn))
    return ax
