"""Loss and accuracy on the way from one checkpoint to another: the straight line beside a trained curve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures.bands import require
from figures.curves import lines
from figures.style import (
    DARK,
    ONE_COLUMN,
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

TABLES = {"connectivity": ("ways",)}
COLUMNS = ["alpha", "way", "loss_nats"]
ENDPOINTS = (
    ("train", "loss_nats", "loss_se_nats", "training loss (nats)", 1.0),
    ("test", "loss_nats", "loss_se_nats", "test loss (nats)", 1.0),
    ("test", "accuracy", "accuracy_se", "test accuracy (%)", 100.0),
)


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw a line for each way; the shaded interval is over images, the thin straight line joins the ends' losses."""
    frame = _by_way(tables["ways"])
    splits = set(frame["split"]) if "split" in frame else set()
    panels = [e for e in ENDPOINTS if e[0] in splits and e[1] in frame]
    if not panels:
        panels = [("", "loss_nats", "loss_se_nats", "loss (nats)", 1.0)]
    fig = new_figure(TWO_COLUMNS if len(panels) > 1 else ONE_COLUMN, 2.3)
    axes = fig.subplots(1, len(panels), squeeze=False)[0]
    for ax, (split, value, se, text, unit) in zip(axes, panels, strict=True):
        part = frame[frame["split"] == split] if split else frame
        lines(ax, part, "alpha", value, se, unit=unit, look=looks(frame))
        if unit == 1.0:
            _chord(ax, part)
        else:
            percent_axis(ax)
        ax.set(xlabel="from the first (0) to the second (1)", ylabel=text)
    letter(list(axes))
    legend_below(fig, axes[0], "mean, 95 % interval over images")
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the loss on one pair of axes, a line for each way and split that the frame holds."""
    frame = _by_way(frame)
    ax = new_axes(ax)
    if "split" in frame and frame["split"].nunique() > 1:
        frame = frame.assign(label=frame["label"] + ", " + frame["split"])
    lines(ax, frame, "alpha", "loss_nats", "loss_se_nats", look=looks(frame))
    for _, part in frame.groupby("label", sort=False):
        _chord(ax, part)
    ax.set(xlabel="from the first (0) to the second (1)", ylabel="loss (nats)")
    if frame["label"].nunique() > 1:
        ax.legend()
    return ax


def _by_way(frame: pd.DataFrame) -> pd.DataFrame:
    frame = require(frame, "connectivity", COLUMNS)
    # The method's columns would colour by method, and the two ends may have two.
    return frame.assign(label=frame["way"]).drop(columns=["method", "bits", "dim"], errors="ignore")


def _chord(ax: Axes, frame: pd.DataFrame) -> None:
    """The straight line between the losses of both ends, over which a barrier rises."""
    ends = frame.drop_duplicates("alpha").sort_values("alpha").iloc[[0, -1]]
    ax.plot(ends["alpha"], ends["loss_nats"], color=DARK, lw=0.5, ls=":")
