"""Loss and accuracy along random filter-normalised lines through each minimum: a column a space, a row an endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figures.bands import Band, band, head_still, ordered, over_text, own_space, require
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
    with_unit,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLES = {"curves": ("points",), "flatness": ("curves",)}
SPACES = ("factors", "merged", "full")
ENDPOINTS = (
    ("train", "rise_nats", "rise_se_nats", "rise of the training loss (nats)", 1.0),
    ("test", "accuracy", "accuracy_se", "test accuracy (%)", 100.0),
)


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw the points of the lines; labels are compared within a panel, spaces are the columns.

    The distance is alpha: 1 is noise with the norm of each filter. Directions, then seeds, are averaged.
    """
    frame = require(tables.get("points", tables.get("curves")), "curves", ["alpha", "space", "split", "rise_nats"])
    frame = own_space(head_still(frame))
    rows = [e for e in ENDPOINTS if e[0] in set(frame["split"]) and e[1] in frame] or [_only_split(frame)]
    spaces = ordered(frame, "space", SPACES)
    fig = new_figure(TWO_COLUMNS if len(spaces) > 1 else TWO_COLUMNS / 2, 0.5 + 1.9 * len(rows))
    panels = fig.subplots(len(rows), len(spaces), sharex="col", sharey="row", squeeze=False)
    drawn: list[Band] = []
    for row, (split, value, se, text, unit) in zip(panels, rows, strict=True):
        for ax, space in zip(row, spaces, strict=True):
            part = frame[(frame["space"] == space) & (frame["split"] == split)]
            drawn += lines(ax, part, "alpha", value, se, unit=unit, look=looks(frame))
        row[0].set_ylabel(text)
        if unit == 100.0:
            percent_axis(row[0])
    for ax, space in zip(panels[0], spaces, strict=True):
        ax.set_title(SPACE_NAMES.get(space, space))
    for ax in panels[-1]:
        ax.set_xlabel("distance α along the direction")
    letter(list(panels.flat))
    legend_below(fig, panels[0, -1], over_text(drawn))
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None, *, unit: str = "nats") -> Axes:
    """Draw the rise of the loss on one pair of axes, a line for each label, split and space that the frame holds."""
    frame = require(frame, "curves", ["alpha", "rise_nats"])
    ax = new_axes(ax)
    keys = [key for key in ("label", "space", "split") if key in frame and frame[key].nunique() > 1]
    if keys:
        frame = frame.assign(label=frame[keys].agg(", ".join, axis=1))
    drawn = lines(ax, frame, "alpha", "rise_nats", "rise_se_nats", look=looks(frame))
    ax.set(xlabel="distance α along the direction", ylabel=with_unit("rise of the loss", unit))
    if keys:
        ax.legend(title=over_text(drawn))
    return ax


def lines(
    ax: Axes,
    frame: pd.DataFrame,
    x: str,
    value: str,
    se: str | None,
    *,
    look: dict[str, dict[str, Any]],
    at: str | None = None,
    unit: float = 1.0,
    marked: bool = False,
) -> list[Band]:
    """A line with its shaded interval for each label, its points marked if asked; returns what was drawn."""
    drawn = []
    for label in (label for label in look if label in set(frame["label"])):
        line = band(frame[frame["label"] == label], x, value, se=se, at=at)
        style = {key: look[label][key] for key in ("color", "ls", *(["marker"] if marked else []))}
        ax.plot(line.x, unit * line.mean, label=label, ms=2.8, **style)
        ax.fill_between(line.x, unit * line.low, unit * line.high, color=style["color"], alpha=0.16, lw=0)
        drawn.append(line)
    return drawn


def _only_split(frame: pd.DataFrame) -> tuple[str, str, str, str, float]:
    """The loss row for data that is neither train nor test."""
    split = str(frame["split"].iloc[0])
    return split, "rise_nats", "rise_se_nats", f"rise of the {split} loss (nats)", 1.0
