"""How the eigenvalues of the Hessian are spread: a line a label with its band over probes, the height logarithmic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figures.bands import require
from figures.style import SPACE_NAMES, TWO_COLUMNS, legend_below, letter, looks, new_axes, new_figure, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLES = {"flatness": ("density",)}
COLUMNS = ("eigenvalue_nats", "density", "low", "high")
# Share of the highest point below which nothing is drawn: the tails of the kernel go on to 0.
FLOOR = 1e-7
# The same where an outermost eigenvalue is lower still: one of a thousand million.
LOWEST = 1e-10


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw one panel for each space, the densities of all labels in it; several runs of a label are lines of one look.

    A Hessian of other tensors has another size and other eigenvalues, so the panels share no axis.
    """
    frame = require(tables["density"], "density", COLUMNS)
    panels = dict(list(frame.groupby("space", sort=False))) if "space" in frame else {"": frame}
    fig = new_figure(TWO_COLUMNS * min(1.0, len(panels) / 2), 2.4)
    axes = fig.subplots(1, len(panels), squeeze=False)[0]
    for ax, (space, part) in zip(axes, panels.items(), strict=True):
        curves(ax, part)
        ax.set_title(SPACE_NAMES.get(str(space), str(space)))
    for ax in axes[1:]:
        ax.set_ylabel("")
    legend_below(fig, axes[0], "mean, 95 % interval over probes", columns=2)
    letter(list(axes))
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the densities that the frame holds on one pair of axes."""
    frame = require(frame, "density", COLUMNS)
    ax = new_axes(ax)
    curves(ax, frame)
    if frame["label"].nunique() > 1:
        ax.legend()
    return ax


def floor(frame: pd.DataFrame) -> float:
    """The lowest density that is drawn: the outermost eigenvalue of a line, one of millions, stands out above it."""
    keys = [key for key in ("label", "run") if key in frame]
    tops = []
    for _, part in frame.groupby(keys, sort=False):
        d = part.sort_values("eigenvalue_nats")["density"].to_numpy()
        peaks = d[1:-1][(d[1:-1] > d[:-2]) & (d[1:-1] > d[2:])]
        tops += [float(peaks[-1]) / 3] if len(peaks) else []
    top = float(frame["density"].max())
    return max(min([FLOOR * top, *tops]), LOWEST * top)


def curves(ax: Axes, frame: pd.DataFrame) -> None:
    """A line with its band for each label and run."""
    top = float(frame["density"].max())
    bottom = floor(frame)
    for label, look in looks(frame).items():
        rows = frame[frame["label"] == label]
        style: dict[str, Any] = {key: look[key] for key in ("color", "ls")}
        parts = [part for _, part in rows.groupby("run", sort=False)] if "run" in rows else [rows]
        for place, part in enumerate(parts):
            x = part["eigenvalue_nats"]
            ax.plot(x, part["density"], label=label if place == 0 else None, **style)
            ax.fill_between(x, part["low"].clip(lower=bottom), part["high"], color=look["color"], alpha=0.16, lw=0)
    ax.set_yscale("log")
    if top > 0:
        ax.set_ylim(bottom, 3 * top)
    ax.set(xlabel="eigenvalue (nats)", ylabel="density of eigenvalues (1/nats)")
