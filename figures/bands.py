"""What a figure does with a frame before it draws: check its columns, and reduce repeats to a mean with its interval.

Repeats are nested: images within a direction, directions within a checkpoint, checkpoints (training seeds) within a
label. The interval is drawn over the outermost level that has repeats, since the inner ones are not independent: over
seeds by Student's t if there are two or more, else over directions, else from the standard error over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from figures.tables import TableError, nearest

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

LEVEL = 0.95


def require(frame: pd.DataFrame | None, figure: str, columns: Sequence[str]) -> pd.DataFrame:
    """The frame with a ``label`` column (empty where there was none), after a check that it has what the figure draws.

    Raises
    ------
    TableError
        If a column is missing or there are no rows.
    """
    if frame is None or not len(frame):
        raise TableError(f"figure {figure!r}: expected a table with rows, found none")
    for column in columns:
        if column not in frame:
            hint = nearest(column, frame.columns)
            raise TableError(f"figure {figure!r}: expected a column {column!r}{hint}, found {', '.join(frame.columns)}")
    return frame if "label" in frame else frame.assign(label="")


@dataclass(frozen=True, kw_only=True)
class Band:
    """A line with its interval.

    Attributes
    ----------
    x, mean, low, high
        One value per point, shape (P,). Where there is no interval, ``low`` and ``high`` are NaN.
    over
        What the interval is over, ``"5 seeds"``, ``"10 directions"``, ``"images"``, or the empty text.
    """

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    over: str


def band(frame: pd.DataFrame, x: str, value: str, *, se: str | None = None, at: str | None = None) -> Band:
    """Mean and 95 % interval of ``value`` at each ``x``, of the rows of one label.

    Parameters
    ----------
    frame
        Rows of one line. ``run`` (or ``seed``) tells checkpoints apart and ``direction`` directions, where present.
    x, value
        Columns. A NaN or infinite value makes its whole point so: a gap in the line, not a mean of what is left.
    se
        Column of standard errors over images, used only where there are neither seeds nor directions to vary over.
    at
        Another column whose mean is the abscissa (a radius that differs a little from direction to direction).
    """
    import numpy as np

    at = None if at == x else at
    unit = next((key for key in ("run", "seed") if key in frame and frame[key].nunique() > 1), None)
    kind = "seeds"
    if unit is None:
        unit, kind = ("direction", "directions") if "direction" in frame else (None, "")
    columns = [value, *([at] if at else []), *([se] if se is not None and se in frame else [])]
    keys = [x] if unit is None else [x, unit]
    # the mean over the inner levels first, so that a run with more directions does not weigh more
    inner = _means(frame, keys, columns).reset_index()
    outer = _means(inner, [x], columns)
    mean = outer[value].to_numpy()
    places = outer[at].to_numpy() if at else outer.index.to_numpy(dtype=float)
    count = inner.groupby(x).size().to_numpy()
    if unit is not None and count.max() > 1:
        from scipy.special import stdtrit

        with np.errstate(invalid="ignore", divide="ignore"):
            # a NaN among the values is one in their mean, which makes the interval NaN too
            error = inner.groupby(x)[value].std().to_numpy() / np.sqrt(count)
            half = np.where(count > 1, stdtrit(np.maximum(count - 1, 1), 0.5 + LEVEL / 2) * error, np.nan)
        over = f"{count.max()} {kind}"
    elif se is not None and se in frame:
        half = 1.959964 * outer[se].to_numpy()
        over = "images" if np.isfinite(half).any() else ""
    else:
        half, over = np.full_like(mean, np.nan), ""
    return Band(x=places, mean=mean, low=mean - half, high=mean + half, over=over)


def own_space(frame: pd.DataFrame) -> pd.DataFrame:
    """Repeat full fine-tuning's rows as ``factors`` where adapters have some: its own tensors are all weights."""
    import pandas as pd

    if "method" not in frame or not (frame["space"] == "factors").any():
        return frame
    own = frame[(frame["method"] == "full") & (frame["space"] == "full")].assign(space="factors")
    return pd.concat([frame, own], ignore_index=True)


def head_still(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows where the head stays still (the claims are about those), or all where it always moves."""
    still = frame[~frame["head"].astype(bool)] if "head" in frame else frame
    return still if len(still) else frame


def ordered(frame: pd.DataFrame, column: str, order: Sequence[str]) -> list[str]:
    """The values of a column, known ones in the given order and others after them."""
    present = list(dict.fromkeys(frame[column]))
    return [v for v in order if v in present] + [v for v in present if v not in order]


def over_text(bands: Sequence[Band]) -> str:
    """What the intervals of a figure are over, for its legend."""
    kinds = list(dict.fromkeys(band.over for band in bands if band.over))
    return f"mean, 95 % interval over {' or '.join(kinds)}" if kinds else ""


def _means(frame: pd.DataFrame, keys: list[str], columns: list[str]) -> pd.DataFrame:
    """Means by group that NaN passes through (pandas would leave it out)."""
    by = [frame[key] for key in keys]
    holes = frame[columns].isna().groupby(by).any()
    return frame[columns].groupby(by).mean().mask(holes)
