"""Rise of the training loss under the three radii side by side: one row a space, one column a radius.

One alpha is a different disturbance for 18 thousand and for 86 million parameters, so the same lines are drawn against
alpha, against the share of the weights' norm that was moved, and against the share of the logits that changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures.bands import Band, head_still, ordered, over_text, own_space, require
from figures.curves import SPACES, lines
from figures.style import GREY, SPACE_NAMES, TWO_COLUMNS, legend_below, letter, looks, new_axes, new_figure, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLES = {"flatness": ("curves", "summary")}
RADII = {
    "alpha": ("distance", "α, in norms of each filter"),
    "effective": ("effective_radius", "effective radius, ‖move‖ / ‖weights‖"),
    "logit": ("logit_radius", "logit radius, RMS change / RMS"),
}


@styled
def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw the training loss of ``curves`` against each radius, and the common radius of ``summary`` as a dotted line.

    Both sides of a line, then directions, then seeds are averaged; the verdict is taken at the dotted line.
    """
    columns = ["alpha", "effective_radius", "logit_radius", "space", "split", "rise_nats"]
    frame = _folded(own_space(head_still(require(tables["curves"], "flatness", columns))))
    summary = require(tables["summary"], "flatness", ["space", "radius_kind", "radius"])
    look = looks(frame)
    spaces = ordered(frame, "space", SPACES)
    fig = new_figure(TWO_COLUMNS, 0.55 + 1.6 * len(spaces))
    panels = fig.subplots(len(spaces), len(RADII), sharex="col", sharey="row", squeeze=False)
    drawn: list[Band] = []
    for row, space in zip(panels, spaces, strict=True):
        part = frame[frame["space"] == space]
        for ax, (kind, (column, _)) in zip(row, RADII.items(), strict=True):
            drawn += lines(ax, part, "distance", "rise_nats", "rise_se_nats", at=column, look=look)
            at = summary[(summary["space"] == space) & (summary["radius_kind"] == kind)]["radius"]
            if len(at):
                ax.axvline(float(at.iloc[0]), color=GREY, lw=0.7, ls=":", zorder=0, label="common radius")
        row[0].set_ylabel("rise of the\ntraining loss (nats)" if len(spaces) < 2 else "rise of loss (nats)")
        row[0].set_title(SPACE_NAMES.get(space, space))
    for ax, (_, text) in zip(panels[-1], RADII.values(), strict=True):
        ax.set_xlabel(text)
        ax.set_xlim(left=0)  # once all rows are drawn: it fixes the right end of the column too
    letter(list(panels.flat))
    legend_below(fig, panels[-1, 0], over_text(drawn), columns=4)
    return fig


@styled
def plot(frame: pd.DataFrame, ax: Axes | None = None, *, radius: str = "alpha") -> Axes:
    """Draw ``curves`` against one radius (``alpha``, ``effective`` or ``logit``) on one pair of axes."""
    column, text = RADII[radius]
    frame = _folded(require(frame, "flatness", ["alpha", "split", "rise_nats"]))
    ax = new_axes(ax)
    if "space" in frame and frame["space"].nunique() > 1:
        frame = frame.assign(label=frame["label"] + ", " + frame["space"])
    drawn = lines(ax, frame, "distance", "rise_nats", "rise_se_nats", at=column, look=looks(frame))
    ax.set(xlabel=text, ylabel="rise of the training loss (nats)", xlim=(0, None))
    if frame["label"].nunique() > 1:
        ax.legend(title=over_text(drawn))
    return ax


def _folded(frame: pd.DataFrame) -> pd.DataFrame:
    """The training rows (else all) with both sides of a line at one distance."""
    train = frame[frame["split"] == "train"]
    frame = train if len(train) else frame
    # rounding undoes nothing that a grid distinguishes; it joins +a and -a where their last bits differ
    return frame.assign(distance=frame["alpha"].abs().round(12))
