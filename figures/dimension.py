"""Accuracy against description length in bytes: random subspaces of growing dimension, adapters, full fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures.bands import require
from figures.style import (
    DARK,
    GREY,
    MARKERS,
    METHOD_NAMES,
    ONE_COLUMN,
    legend_below,
    method_colour,
    new_axes,
    new_figure,
    percent_axis,
    styled,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLES = {"dimension": ("points", "answer")}
COLUMNS = ["method", "dim", "bits", "bytes", "accuracy", "accuracy_se_seeds"]
TARGETS = {"of_full": ("-", "of full fine-tuning"), "above_head": (":", "of its gain over the head")}


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw the points, a line through the subspaces, and the accuracies to be reached."""
    answer = require(tables["answer"], "dimension", ["yardstick", "model", "seed", "share", "target_accuracy"])
    fig = new_figure(ONE_COLUMN, 3.1)
    ax = fig.subplots()
    plot(tables["points"], ax)
    sought = answer[(answer["model"] == "subspace") & (answer["seed"].astype(str) == "all")]
    for yardstick, (line, of) in TARGETS.items():
        rows = sought[(sought["yardstick"] == yardstick) & sought["target_accuracy"].notna()]
        for row in rows.to_dict("records"):
            text = f"{100 * row['share']:g} % {of}"
            ax.axhline(100 * row["target_accuracy"], color=DARK, lw=0.7, ls=line, zorder=0, label=text)
    percent_axis(ax)
    repeated = tables["points"]["accuracy_se_seeds"].notna().any()
    legend_below(fig, ax, "mean, standard error over seeds" if repeated else "", columns=2)
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the points on one pair of axes; the head alone, which takes no bytes, is a line across."""
    frame = require(frame, "dimension", COLUMNS)
    ax = new_axes(ax)
    for place, (method, group) in enumerate(frame.groupby("method")):
        rows = group.sort_values("bytes")
        name, colour = METHOD_NAMES.get(str(method), str(method)), method_colour(str(method))
        if method == "linear":
            ax.axhline(100 * rows["accuracy"].mean(), color=GREY, lw=1.0, ls="--", zorder=0, label=name)
            continue
        ax.errorbar(
            rows["bytes"], 100 * rows["accuracy"], yerr=100 * rows["accuracy_se_seeds"].fillna(0.0), label=name,
            color=colour, marker=MARKERS[place % len(MARKERS)], ls="-" if method == "subspace" else "", elinewidth=0.8,
        )  # fmt: skip
        for row in rows.to_dict("records") if method not in ("full", "subspace") else []:
            ax.annotate(
                f"{row['dim']} × {row['bits']} bit", (row["bytes"], 100 * row["accuracy"]), xytext=(4, 2),
                textcoords="offset points", fontsize=5.5, color=colour,
            )  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlabel("bytes beside the head")
    ax.set_ylabel("test accuracy (%)")
    return ax
