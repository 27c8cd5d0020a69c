"""Predicted against measured change of the loss when a matrix is rounded: a panel a bit-width, failures marked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures.bands import require
from figures.style import (
    DARK,
    GREY,
    MARKERS,
    TWO_COLUMNS,
    letter,
    method_colour,
    new_axes,
    new_figure,
    styled,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLES = {"survive": ("matrices", "correlations")}
COLUMNS = ["quantizer", "bits", "predicted_nats", "measured_nats", "measured_se_nats", "verdict"]
FAILS = DARK


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw a row of panels for each label and quantiser, a panel for each bit-width, with its rank correlations."""
    frame = require(tables["matrices"], "survive", COLUMNS)
    ranks = require(tables["correlations"], "survive", ["quantizer", "bits", "predictor", "spearman"])
    groups = list(frame.groupby(["label", "quantizer"], sort=False))
    widths = sorted(set(frame["bits"]))
    fig = new_figure(TWO_COLUMNS * min(1.0, max(len(widths), 2) / 4), 0.6 + 1.9 * len(groups))
    axes = fig.subplots(len(groups), len(widths), squeeze=False)
    for row, ((label, quantizer), group) in zip(axes, groups, strict=True):
        own = ranks[(ranks["label"] == label) & (ranks["quantizer"] == quantizer)]
        for ax, bits in zip(row, widths, strict=True):
            points(ax, group[group["bits"] == bits])
            said = f"{bits} bit{'s' if bits > 1 else ''}"
            found = own[own["bits"] == bits].groupby("predictor")["spearman"].mean()
            if {"hessian", "error_squared"} <= set(found.index):
                said += f": ρ {found['hessian']:.2f}, of ‖e‖² {found['error_squared']:.2f}"
            ax.set_title(f"{label}, {quantizer}\n{said}" if ax is row[0] else said)
        row[0].set_ylabel("measured change (nats)")
    letter(list(axes.flat))
    _legend(fig, frame, columns=3 if len(widths) > 3 else 1)
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw all matrices of a table, of whatever bit-width, on one pair of axes."""
    ax = new_axes(ax)
    points(ax, require(frame, "survive", COLUMNS))
    ax.set_ylabel("measured change (nats)")
    return ax


def points(ax: Axes, frame: pd.DataFrame) -> None:
    """The matrices whose two changes are positive, with bars of two paired standard errors; crosses are failures."""
    import numpy as np
    from matplotlib.ticker import NullFormatter

    changes = ["predicted_nats", "measured_nats"]
    found = frame[changes].to_numpy(float)
    seen = frame[((found > 0) & np.isfinite(found)).all(axis=1)]
    ax.set(xscale="log", yscale="log", xlabel="predicted change (nats)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter(NullFormatter())
    methods = list(dict.fromkeys(seen["method"])) if "method" in seen else [""]
    for place, method in enumerate(methods):
        part = seen[seen["method"] == method] if method else seen
        for fails in (False, True):
            rows = part[(part["verdict"] == "fails") == fails]
            x, y, e = (rows[c].to_numpy(float) for c in (*changes, "measured_se_nats"))
            colour = FAILS if fails else method_colour(str(method))
            marker = "x" if fails else MARKERS[place % len(MARKERS)]
            low = np.minimum(2 * e, 0.999 * y)  # a bar that ends below 0 goes to the edge of a logarithmic axis
            ax.vlines(x, y - low, y + 2 * e, color=colour, lw=0.5, alpha=0.35)
            ax.plot(x, y, ls="", marker=marker, color=colour, ms=3)
    if len(seen):
        values = seen[changes].to_numpy(float)
        # at least a decade and a half, so that a tick has its number
        widen = max(2.0, (30 * values.min() / values.max()) ** 0.5)
        ends = values.min() / widen, values.max() * widen
        ax.plot(ends, ends, color=GREY, lw=0.7, zorder=0)
        ax.set(xlim=ends, ylim=ends)
    if len(seen) < len(frame):
        ax.annotate(
            f"{len(frame) - len(seen)} of {len(frame)} not positive", (0.97, 0.03), xycoords="axes fraction",
            ha="right", fontsize=6, color=GREY, bbox={"color": "white", "pad": 0.5},
        )  # fmt: skip


def _legend(fig: Figure, frame: pd.DataFrame, columns: int) -> None:
    from matplotlib.lines import Line2D

    methods = list(dict.fromkeys(frame["method"])) if "method" in frame else [""]
    first = method_colour(str(methods[0]))
    handles = [
        Line2D([], [], ls="", marker="o", color=first, label="a matrix, ± 2 paired standard errors"),
        Line2D([], [], ls="", marker="x", color=FAILS, label="the quadratic model fails"),
        Line2D([], [], color=GREY, lw=0.7, label="predicted = measured"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=columns)
