"""Quantisers against their bits: accuracy after and in training, and distortion next to what no code can better.

The bound is Gaussian: weights that are not, and codebooks fitted to few of them, can lie below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figures.bands import Band, band, over_text, require
from figures.style import (
    DARK,
    DASHES,
    GREY,
    MARKERS,
    METHOD_COLOURS,
    OTHER_COLOURS,
    TWO_COLUMNS,
    letter,
    new_axes,
    new_figure,
    percent_axis,
    styled,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLES = {"bits": ("points",)}
COLUMNS = ["quantizer", "bits", "when", "accuracy", "accuracy_change_se", "rate_bits", "entropy_bits", "distortion"]
PALETTE = [colour for method, colour in METHOD_COLOURS.items() if method != "linear"] + list(OTHER_COLOURS)


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw a row of two panels for each label: accuracy against bits, distortion against the entropy of the codes."""
    frame = require(tables["points"], "bits", COLUMNS)
    labels = list(dict.fromkeys(frame["label"]))
    look = looks(frame)
    rows = -(-(len(look) + 3) // 5)  # of the legend
    fig = new_figure(TWO_COLUMNS, 2.5 * len(labels) + 0.15 * rows)
    axes = fig.subplots(len(labels), 2, squeeze=False)
    drawn: list[Band] = []
    for (left, right), label in zip(axes, labels, strict=True):
        part = frame[frame["label"] == label]
        drawn += accuracies(left, part, look)
        distortions(right, part, look)
        left.set_title(label)
    letter(list(axes.flat))
    fig.legend(handles=_handles(frame, look), loc="outside lower center", ncols=5, title=over_text(drawn) or None)
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the accuracies of the first label on one pair of axes."""
    frame = require(frame, "bits", COLUMNS)
    frame = frame[frame["label"] == frame["label"].iloc[0]]
    ax, look = new_axes(ax), looks(frame)
    accuracies(ax, frame, look)
    ax.legend(handles=_handles(frame, look), ncols=2)
    return ax


def looks(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Colour, marker and line style of every quantiser: the colours come round with another line style."""
    names = sorted(set(frame.loc[frame["when"] != "as trained", "quantizer"]))
    found = {}
    for place, name in enumerate(names):
        turn = place // len(PALETTE)
        found[name] = {
            "color": PALETTE[place % len(PALETTE)],
            "ls": DASHES[turn % len(DASHES)],
            "marker": MARKERS[(place + turn) % len(MARKERS)],
        }
    return found


def accuracies(ax: Axes, frame: pd.DataFrame, look: dict[str, dict[str, Any]]) -> list[Band]:
    """Accuracy against the bits of dense codes; stars are trained in low bits. Grey: the model as it was trained.

    Bars over images are those of the paired difference from the model in 32 bits.
    """
    drawn = []
    for (name, when), rows in frame[frame["when"] != "as trained"].groupby(["quantizer", "when"], sort=False):
        line = band(rows, "rate_bits", "accuracy", se="accuracy_change_se")
        style = dict(look[str(name)], lw=0.8, ms=2.6)
        if when == "in training":
            style |= {"marker": "*", "ls": "", "ms": 6.5, "mec": DARK, "mew": 0.4, "zorder": 4}
        bars = [100 * (line.mean - line.low), 100 * (line.high - line.mean)]
        ax.errorbar(line.x, 100 * line.mean, yerr=bars, elinewidth=0.4, capsize=0, **style)
        drawn.append(line)
    trained = frame[frame["when"] == "as trained"]
    if len(trained):
        ax.axhline(100 * trained["accuracy"].mean(), color=GREY, lw=0.8, zorder=0)
    _axis(ax, frame, "bits a weight, codes dense")
    ax.set_ylabel("test accuracy (%)")
    percent_axis(ax)
    return drawn


def distortions(ax: Axes, frame: pd.DataFrame, look: dict[str, dict[str, Any]]) -> None:
    """Mean squared error over the variance against the entropy of the codes, with the Gaussian bound 2^(-2 R)."""
    import numpy as np

    after = frame[frame["when"] == "after"]
    for name, rows in after.groupby("quantizer", sort=False):
        line = band(rows, "bits", "distortion", at="entropy_bits")
        positive = line.mean > 0
        ax.plot(line.x[positive], line.mean[positive], **dict(look[str(name)], lw=0.8, ms=2.6))
    trained = frame[frame["when"] == "in training"]
    for name, rows in trained.groupby("quantizer", sort=False):
        style = {"marker": "*", "ls": "", "ms": 6.5, "mec": DARK, "mew": 0.4, "zorder": 4}
        ax.plot(rows["entropy_bits"], rows["distortion"], **dict(look[str(name)], **style))
    most = float(frame.loc[frame["when"] != "as trained", "entropy_bits"].max())
    rates = np.linspace(0, 1.04 * most, 50)
    # D(R) / sigma^2 = 2^(-2 R)
    ax.plot(rates, 2.0 ** (-2 * rates), color=DARK, lw=1.0, zorder=1)
    ax.set_yscale("log")
    _axis(ax, frame, "bits a weight, entropy of the codes")
    ax.set_ylabel("squared error / variance")


def _axis(ax: Axes, frame: pd.DataFrame, text: str) -> None:
    most = float(frame.loc[frame["when"] != "as trained", "rate_bits"].max())
    ax.set_xlim(0, 1.05 * most)
    ax.set_xlabel(text)


def _handles(frame: pd.DataFrame, look: dict[str, dict[str, Any]]) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=name, **dict(style, lw=0.8, ms=2.6)) for name, style in look.items()]
    if (frame["when"] == "in training").any():
        handles.append(Line2D([], [], ls="", marker="*", ms=6.5, color=GREY, mec=DARK, mew=0.4, label="in training"))
    handles.append(Line2D([], [], color=GREY, lw=0.8, label="as trained, 32 bits"))
    return [*handles, Line2D([], [], color=DARK, lw=1.0, label="Gaussian bound")]
