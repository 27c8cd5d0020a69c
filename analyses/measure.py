"""The measurements that several analyses share: lines through a checkpoint, in one space or another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from analyses.checkpoint import Checkpoint
    from analyses.options import Gauge, Options, Weights

Measured = tuple["pd.DataFrame", dict[str, Any]]
"""Rows, and the facts about them that belong into the provenance (NUMERICS 28)."""


def lines(
    checkpoint: Checkpoint,
    options: Options,
    *,
    directions: int,
    alphas: Sequence[float],
    splits: Sequence[str] = ("train", "test"),
    head: bool = False,
    gauge: Gauge = "as-trained",
    weights: Weights = "values",
    on_point: Callable[..., None] | None = None,
) -> Measured:
    """Loss along ``directions`` random filter-normalised lines in each space of a checkpoint.

    One row a space, direction, split and point.
    """
    import pandas as pd

    from landscape.directions import draw
    from landscape.surface import line

    frames, facts = [], {}
    for space in checkpoint.spaces(weights):
        moving = checkpoint.space(space, head=head, gauge=gauge, weights=weights)
        objectives = checkpoint.objectives(moving.model, splits, options)
        curves = [
            line(objectives, moving, draw(moving, options.seed + i), alphas, on_point=on_point)
            for i in range(directions)
        ]
        frames += [curve.to_frame() for curve in curves]
        every = [curve.provenance["directions"][0] for curve in curves]
        facts[space] = {**curves[0].provenance, "directions": every, "gauge": gauge}
    return labelled(pd.concat(frames, ignore_index=True), checkpoint), {"measured": facts}


def labelled(frame: pd.DataFrame, checkpoint: Checkpoint, **columns: object) -> pd.DataFrame:
    """The frame with the columns in front that say which model it is about."""
    import pandas as pd

    labels = pd.DataFrame({**checkpoint.labels(), **columns}, index=frame.index)
    return pd.concat([labels, frame.drop(columns=list(labels), errors="ignore")], axis=1)


def mean(values: pd.Series) -> float:
    """The mean, NaN where one value is: pandas would leave it out, and the worst direction with it (NUMERICS 6)."""
    return float(values.to_numpy(float).mean())


def sem(values: pd.Series) -> float:
    """The standard error of the mean, NaN where one value is, or where there is one value."""
    x = values.to_numpy(float)
    return float(x.std(ddof=1) / len(x) ** 0.5) if len(x) > 1 else float("nan")
