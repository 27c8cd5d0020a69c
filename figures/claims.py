"""The claims as a forest plot: effect, interval, margin and computed verdict of each; one scale for each unit."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.bands import require
from figures.style import DARK, GREY, TWO_COLUMNS, new_axes, new_figure, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLES = {"claims": ("claims",)}
COLUMNS = ["claim", "statement", "kind", "margin", "effect", "low", "high", "confidence", "n", "verdict", "unit"]
VERDICTS = {"holds": "#0072b2", "does not hold": "#d55e00", "undecided": "#6f6f6f"}
FILLED = {"holds": "o", "does not hold": "X", "undecided": "o"}
UNITS = {"accuracy": ("accuracy points", 100.0)}  # unit in the table: unit drawn and factor
WRAP = 50  # letters a line
TEXT_WIDTH = 182.0  # points that so many letters take


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw a panel for each unit, a row for each claim; the dotted tick is the margin its interval must pass.

    Where the margin is 0 it is the line that goes through all rows.
    """
    frame = require(tables["claims"], "claims", COLUMNS)
    units = [group for _, group in frame.groupby("unit", sort=False)]
    heights = [sum(_lines(row) for row in group["statement"]) + 2.2 for group in units]
    fig = new_figure(TWO_COLUMNS, 0.25 + 0.135 * sum(heights))
    axes = fig.subplots(len(units), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for ax, group in zip(axes, units, strict=True):
        forest(ax, group)
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the claims of one unit on one pair of axes."""
    frame = require(frame, "claims", COLUMNS)
    ax = new_axes(ax)
    forest(ax, frame[frame["unit"] == frame["unit"].iloc[0]])
    return ax


def forest(ax: Axes, frame: pd.DataFrame) -> None:
    """Rows from the top: statement on the left, interval and margin, then verdict, n and confidence on the right."""
    heights = np.array([_lines(text) for text in frame["statement"]], dtype=float)
    places = np.cumsum(heights) - heights / 2
    unit, factor = UNITS.get(frame["unit"].iloc[0], (frame["unit"].iloc[0], 1.0))
    frame = frame.assign(**{column: factor * frame[column] for column in ("effect", "low", "high", "margin")})
    rows: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
    for y, row in zip(places, rows, strict=True):
        _interval(ax, y, row)
        colour = VERDICTS.get(row["verdict"], DARK)
        left = (-TEXT_WIDTH - 8, 0)
        ax.annotate(
            str(row["claim"]), (0, y), xytext=left, xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", ha="right", fontweight="bold", annotation_clip=False,
        )  # fmt: skip
        right: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
        ax.annotate(row["verdict"], (1, y), xytext=(8, 0), color=colour, fontweight="bold", **right)
        # the confidence is that of the claim's step in its family, so it stands beside each
        ax.annotate(
            f"n = {int(row['n'])}, {100 * row['confidence']:.4g} %", (1, y), xytext=(68, 0), color=DARK, **right
        )
    ax.set_yticks(places, [textwrap.fill(str(row["statement"]), WRAP) for row in rows])
    ax.tick_params(axis="y", length=0, pad=TEXT_WIDTH)
    for label in ax.get_yticklabels():
        label.set(horizontalalignment="left", linespacing=1.15)
    ax.spines["left"].set_visible(False)
    ax.axvline(0, color=GREY, lw=0.6, zorder=0)
    ax.set_ylim(heights.sum() + 0.2, -0.2)
    ax.margins(x=0.06)
    ax.set_xlabel(f"effect and interval, dotted: margin ({unit})")


def _interval(ax: Axes, y: float, row: dict[str, Any]) -> None:
    colour = VERDICTS.get(row["verdict"], DARK)
    ax.plot([row["low"], row["high"]], [y, y], color=colour, lw=1.4, solid_capstyle="butt")
    face = "white" if row["verdict"] == "undecided" else colour
    ax.plot(row["effect"], y, marker=FILLED.get(row["verdict"], "o"), ms=4.5, mfc=face, mec=colour, mew=1.0, ls="")
    if np.isfinite(row["margin"]) and row["margin"] != 0:
        ax.plot([row["margin"]] * 2, [y - 0.6, y + 0.6], color=DARK, lw=0.9, ls=(0, (1, 1)))


def _lines(text: str) -> float:
    """Height of a row in lines of text, its own gap included."""
    return 0.7 + len(textwrap.wrap(text, WRAP))
