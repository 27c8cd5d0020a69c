"""A trained adapter made smaller: accuracy against bytes, and against the hidden size what it loses, by each way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figures.bands import require
from figures.style import DARK, GREY, TWO_COLUMNS, legend_below, letter, new_axes, new_figure, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLES = {"collapse": ("sizes",)}
COLUMNS = [
    "how", "size", "stored_bits", "adapter_bytes", "accuracy", "accuracy_se", "accuracy_change", "accuracy_change_se",
]  # fmt: skip
TRAINED = "as trained"
MARGIN = 1.0  # accuracy points
WAYS = {
    "merged": {"color": "#0072b2", "marker": "s"},
    "pruned": {"color": "#d55e00", "marker": "^"},
    "retrained": {"color": "#009e73", "marker": "D"},
}


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw a row of two panels for each label: accuracy against bytes, and the change from the trained adapter."""
    frame = require(tables["sizes"], "collapse", COLUMNS)
    labels = list(dict.fromkeys(frame["label"]))
    fig = new_figure(TWO_COLUMNS, 0.5 + 2.1 * len(labels))
    axes = fig.subplots(len(labels), 2, squeeze=False)
    for (left, right), label in zip(axes, labels, strict=True):
        rows = frame[frame["label"] == label]
        against_bytes(left, rows)
        against_size(right, rows)
        left.set_title(label)
    letter(list(axes.flat))
    legend_below(
        fig, axes[0, 1], "mean and its standard error, over test images or, of several runs, over runs", columns=5
    )
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the first label's accuracy against bytes on one pair of axes."""
    frame = require(frame, "collapse", COLUMNS)
    ax = new_axes(ax)
    against_bytes(ax, frame[frame["label"] == frame["label"].iloc[0]])
    ax.legend()
    return ax


def against_bytes(ax: Axes, rows: pd.DataFrame) -> None:
    """A line for each way, its points marked with their sizes where there is room, and the trained adapter."""
    for name, look, part in ways(rows):
        x = part["adapter_bytes"]
        ax.errorbar(x, 100 * part["accuracy"], yerr=100 * part["accuracy_se"], elinewidth=0.8, label=name, **look)
    own = means(rows[rows["how"] == TRAINED]).iloc[0]
    ax.plot(own["adapter_bytes"], 100 * own["accuracy"], ls="", marker="*", ms=8, color=DARK, label=TRAINED)
    ax.axhline(100 * own["accuracy"] - MARGIN, color=GREY, lw=0.8, ls=":")
    ax.set(xscale="log", xlabel="adapter (bytes)", ylabel="test accuracy (%)")


def against_size(ax: Axes, rows: pd.DataFrame) -> None:
    """The paired change of accuracy in points, with the margin that was fixed in advance."""
    from matplotlib.ticker import NullLocator

    sizes = sorted({int(size) for size in rows["size"]})
    for place, (name, look, part) in enumerate(ways(rows)):
        x = part["size"] * 2 ** (0.06 * (place - 1))  # so that bars do not cover one another
        ax.errorbar(
            x, 100 * part["accuracy_change"], yerr=100 * part["accuracy_change_se"], elinewidth=0.8, label=name, **look
        )
    ax.axhline(0, color=GREY, lw=0.6, zorder=0)
    ax.axhline(-MARGIN, color=GREY, lw=0.8, ls=":", zorder=0, label=f"margin, {MARGIN:g} point")
    ax.plot(max(sizes), 0, ls="", marker="*", ms=8, color=DARK, label=TRAINED)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="hidden size or rank", ylabel="change (points)")


def ways(rows: pd.DataFrame) -> list[tuple[str, dict[str, Any], pd.DataFrame]]:
    """Name, look and mean rows of each way; solid at the bits of the trained adapter, else dashed."""
    own = int(rows.loc[rows["how"] == TRAINED, "stored_bits"].iloc[0])
    found = []
    smaller = rows[rows["how"] != TRAINED]
    for how, bits in smaller[["how", "stored_bits"]].drop_duplicates().itertuples(index=False):
        part = means(smaller[(smaller["how"] == how) & (smaller["stored_bits"] == bits)])
        look = {**WAYS.get(str(how), {"color": DARK, "marker": "o"}), "ls": "-" if bits == own else (0, (4, 1.5))}
        found.append((str(how) if bits == own else f"{how}, in {bits} bits", look, part))
    return found


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a size: of one run its own errors, of several the mean and its standard error over them."""
    values = ["accuracy", "accuracy_change", "adapter_bytes"]
    grouped = rows.groupby("size")
    found = grouped[[*values, "accuracy_se", "accuracy_change_se"]].mean()
    if grouped.size().max() > 1:
        for value in values[:2]:
            found[f"{value}_se"] = grouped[value].sem()
    return found.reset_index()
