"""The rise of the loss at one radius, between the points of a line: what makes models comparable (NUMERICS 12).

Only the rise of the loss is interpolated, never accuracy (NUMERICS 10), by the monotone cubic of Fritsch and Carlson
(PCHIP), on each side of the centre by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from landscape.errors import LandscapeError, nearest

if TYPE_CHECKING:
    import pandas as pd

RADII = {"alpha": "alpha", "effective": "effective_radius", "logit": "logit_radius"}
_ONE_LINE = ("run", "space", "head", "split", "direction")
# How far beyond the outermost point a radius may lie and still be that point (rounding of a common radius).
_ROUNDING = 1e-9


def reach(frame: pd.DataFrame, radius_kind: str) -> float:
    """The largest radius that a line reaches on both its sides (on its one side if it has one)."""
    return min(float(np.max(radii)) for radii, _ in _sides(frame, radius_kind))


def rise_at(frame: pd.DataFrame, radius_kind: str, radius: float) -> float:
    """Rise of the loss over the centre at a radius, the mean of the two sides of the line, in nats.

    Where a side passes the radius several times (a logit radius may fall again) its first passage counts.

    Parameters
    ----------
    frame
        The rows of one line: one model, space, split and direction.
    radius_kind
        ``alpha``, ``effective`` or ``logit``.
    radius
        Zero or more.

    Returns
    -------
    float
        NaN where the loss at, or on the way to, the radius is not finite.

    Raises
    ------
    LandscapeError
        If the rows are not those of one line, or it ends before the radius.
    """
    sides = _sides(frame, radius_kind)
    furthest = min(float(np.max(radii)) for radii, _ in sides)
    if not 0 <= radius <= furthest * (1 + _ROUNDING):
        raise LandscapeError(f"expected a {radius_kind} radius from 0 to {furthest:.6g}, found {radius:.6g}")
    return float(np.mean([_interpolated(radii, rises, radius) for radii, rises in sides]))


def _interpolated(radii: NDArray[np.float64], rises: NDArray[np.float64], radius: float) -> float:
    from scipy.interpolate import PchipInterpolator

    # Points that go further out than all before them; NaN compares false and ends nothing by itself.
    rising = np.concatenate([[True], radii[1:] > np.maximum.accumulate(radii)[:-1]])
    passage = int(np.argmax(radii >= min(radius, radii.max())))
    if not np.isfinite(rises[: passage + 1]).all():
        return float("nan")
    finite = np.cumsum(~np.isfinite(rises)) == 0
    radii, rises = radii[rising & finite], rises[rising & finite]
    return float(rises[0]) if len(radii) == 1 else float(PchipInterpolator(radii, rises)(min(radius, radii[-1])))


def _sides(frame: pd.DataFrame, radius_kind: str) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    # For each side of the centre that has points: radii and rises from the centre outwards, (0, 0) first.
    if radius_kind not in RADII:
        raise LandscapeError(
            f"expected a radius among {', '.join(RADII)}, found {radius_kind!r}{nearest(radius_kind, RADII)}"
        )
    for column in _ONE_LINE:
        if column in frame and frame[column].nunique(dropna=False) > 1:
            raise LandscapeError(f"expected the rows of one line, found {frame[column].nunique()} values of {column!r}")
    alphas = frame["alpha"].to_numpy(dtype=np.float64)
    radii = np.abs(frame[RADII[radius_kind]].to_numpy(dtype=np.float64))
    rises = frame["rise_nats"].to_numpy(dtype=np.float64)
    sides = []
    for sign in (-1, 1):
        rows = np.flatnonzero(np.sign(alphas) == sign)
        rows = rows[np.argsort(np.abs(alphas[rows]), kind="stable")]
        # An interpolated point has no logit radius, and no place on the axis; one whose loss is not finite has that of
        # the point before it, so that nothing beyond is reached without it.
        rows = rows[~np.isnan(radii[rows]) | ~np.isfinite(rises[rows])]
        places = np.concatenate([[0.0], radii[rows]])
        for i in np.flatnonzero(np.isnan(places)):
            places[i] = places[i - 1]
        if not np.isnan(radii[rows]).all():
            sides.append((places, np.concatenate([[0.0], rises[rows]])))
    if not sides:
        raise LandscapeError("expected points beside the centre, found none")
    return sides
