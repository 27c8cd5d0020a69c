"""Training curves of run folders: one panel an endpoint, a line for each kind of run, the seeds as its band."""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures.bands import Band, over_text, require
from figures.curves import lines
from figures.style import TWO_COLUMNS, legend_below, letter, looks, new_axes, new_figure, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLES = {"history": ("history",)}
PANELS = (
    ("train_loss_nats", "training loss (nats)", 1.0),
    ("val_loss_nats", "validation loss (nats)", 1.0),
    ("val_accuracy", "validation accuracy (%)", 100.0),
)


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw against the epoch each endpoint that was recorded (some protocols never look at validation images)."""
    frame = require(tables["history"], "history", ["epoch", "train_loss_nats"])
    look = looks(frame)
    shown = [panel for panel in PANELS if panel[0] in frame and frame[panel[0]].notna().any()]
    fig = new_figure(TWO_COLUMNS if len(shown) > 1 else TWO_COLUMNS / 2, 2.35)
    axes = fig.subplots(1, len(shown), squeeze=False)[0]
    drawn: list[Band] = []
    for ax, (column, text, unit) in zip(axes, shown, strict=True):
        drawn += lines(ax, frame, "epoch", column, None, unit=unit, look=look)
        ax.set(xlabel="epoch", ylabel=text)
    letter(list(axes))
    legend_below(fig, axes[0], over_text(drawn))
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the training loss against the epoch on one pair of axes."""
    frame = require(frame, "history", ["epoch", "train_loss_nats"])
    ax = new_axes(ax)
    drawn = lines(ax, frame, "epoch", "train_loss_nats", None, look=looks(frame))
    ax.set(xlabel="epoch", ylabel="training loss (nats)")
    if frame["label"].nunique() > 1:
        ax.legend(title=over_text(drawn))
    return ax
