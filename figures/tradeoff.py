"""Accuracy at equal bytes: bits times dim held constant, so a line says whether few bits or a low dim save better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figures.bands import Band, band, over_text, require
from figures.style import (
    DARK,
    DASHES,
    MARKERS,
    METHOD_NAMES,
    TWO_COLUMNS,
    bits_axis,
    letter,
    method_colour,
    new_axes,
    new_figure,
    styled,
)  # fmt: skip

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLES = {"tradeoff": ("points",)}
COLUMNS = ["method", "bits", "dim", "test_accuracy", "adapter_bytes"]


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw a panel for each method and in it a line for each budget; faint dots are the training seeds."""
    from matplotlib.lines import Line2D

    frame = require(tables["points"], "tradeoff", COLUMNS)
    methods = list(dict.fromkeys(frame["method"]))
    looks = budgets(frame)
    fig = new_figure(TWO_COLUMNS if len(methods) > 1 else TWO_COLUMNS / 2, 2.5)
    axes = fig.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    drawn: list[Band] = []
    for ax, method in zip(axes, methods, strict=True):
        drawn += lines(ax, frame[frame["method"] == method], looks)
        ax.set_title(METHOD_NAMES.get(method, method))
    axes[0].set_ylabel("test accuracy (%)")
    letter(list(axes))
    # the colour says the method, so the legend of the budgets has none
    handles = [Line2D([], [], color=DARK, label=sizes(frame, product), **look) for product, look in looks.items()]
    fig.legend(handles=handles, loc="outside lower center", ncols=2, title=over_text(drawn) or None)
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the budgets of one method on one pair of axes."""
    frame = require(frame, "tradeoff", COLUMNS)
    frame = frame[frame["method"] == frame["method"].iloc[0]]
    ax = new_axes(ax)
    drawn = lines(ax, frame, budgets(frame))
    ax.set_ylabel("test accuracy (%)")
    ax.legend(title=over_text(drawn))
    return ax


def budgets(frame: pd.DataFrame) -> dict[int, dict[str, Any]]:
    """Line style and marker of each product of bits and dim, the largest first."""
    products = sorted({int(p) for p in frame["bits"] * frame["dim"]}, reverse=True)
    return {p: {"ls": DASHES[i % len(DASHES)], "marker": MARKERS[i % len(MARKERS)]} for i, p in enumerate(products)}


def sizes(frame: pd.DataFrame, product: int) -> str:
    """A budget in words: the product, and the adapter's size on disk, by method where they differ."""
    rows = frame[frame["bits"] * frame["dim"] == product]
    size = {
        str(m): f"{b / 1024:.3g} KiB" for m, b in rows.groupby("method", sort=False)["adapter_bytes"].median().items()
    }
    if len(set(size.values())) == 1:
        return f"bits × dim = {product} ({next(iter(size.values()))})"
    return f"bits × dim = {product} ({', '.join(f'{METHOD_NAMES.get(m, m)} {s}' for m, s in size.items())})"


def lines(ax: Axes, frame: pd.DataFrame, looks: dict[int, dict[str, Any]]) -> list[Band]:
    """A line of mean accuracy against bits for each budget of one method."""
    present = [p for p in looks if (frame["bits"] * frame["dim"] == p).any()]
    colour = method_colour(str(frame["method"].iloc[0]))
    drawn = []
    for place, product in enumerate(present):
        line = frame[frame["bits"] * frame["dim"] == product]
        shift = 2 ** (0.12 * (place - (len(present) - 1) / 2))
        drawn.append(seeds_and_mean(ax, line, colour, sizes(frame, product), shift=shift, **looks[product]))
    bits_axis(ax, [int(b) for b in frame["bits"]])
    if len(looks) == 1:
        ticks = sorted({int(b) for b in frame["bits"]})
        ax.set_xticks(ticks, [f"{b}\n{next(iter(looks)) // b}" for b in ticks])
        ax.set_xlabel("bits a weight (above), dim (below)")
    return drawn


def seeds_and_mean(
    ax: Axes,
    frame: pd.DataFrame,
    colour: str,
    text: str,
    *,
    value: str = "test_accuracy",
    shift: float = 1.0,
    **style: Any,
) -> Band:
    """Faint dots for the seeds, a line through their means, error bars; ``shift`` times the bits sets lines apart."""
    line = band(frame, "bits", value)
    ax.plot(frame["bits"] * shift, 100 * frame[value], ls="", marker="o", ms=2, mew=0, color=colour, alpha=0.35)
    bars = [100 * (line.mean - line.low), 100 * (line.high - line.mean)]
    style = {"marker": "o", "ls": "-", **style}
    ax.errorbar(line.x * shift, 100 * line.mean, yerr=bars, color=colour, elinewidth=0.8, label=text, **style)
    return line
