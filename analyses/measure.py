"""The measurements that several analyses share: lines through a checkpoint, in one space or another."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

from analyses.options import Move

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pandas as pd

    from analyses.checkpoint import Checkpoint
    from analyses.options import Options
    from analyses.weights import Held

Measured = tuple["pd.DataFrame", dict[str, Any]]
"""Rows, and the facts about them that belong into the provenance (NUMERICS 28)."""


def lines(
    checkpoint: Checkpoint,
    options: Options,
    move: Move,
    *,
    directions: int,
    alphas: Sequence[float],
    splits: Sequence[str] = ("train", "test"),
    parts: Path,
    on_point: Callable[..., None] | None = None,
) -> Measured:
    """Loss along ``directions`` random filter-normalised lines in each space of a checkpoint.

    One row a space, direction, split and point. ``parts`` is a folder for measured points, from which a killed run goes
    on.
    """
    import pandas as pd

    from figures.tables import key_of
    from landscape.directions import draw
    from landscape.shards import clear
    from landscape.surface import line

    frames, facts, spent = [], {}, []
    moved = {field.name: getattr(move, field.name) for field in fields(Move)}
    about = {**options.settings(), **moved, "splits": list(splits), "checkpoint": checkpoint.identity}
    for space in move.kinds(checkpoint):
        moving = checkpoint.space(space, **move.of_space())
        objectives = checkpoint.objectives(moving.model, splits, options)
        stores = [parts / key_of({**about, "space": space, "direction": i}) for i in range(directions)]
        curves = [
            line(
                objectives,
                moving,
                draw(moving, options.seed + i),
                alphas,
                precision=move.precision,
                workers=options.workers,
                store=store,
                on_point=on_point,
            )
            for i, store in enumerate(stores)
        ]
        spent += [partial(clear, store, {(alpha,) for alpha in alphas}) for store in stores]
        frames += [curve.to_frame() for curve in curves]
        every = [curve.provenance["directions"][0] for curve in curves]
        facts[space] = {**curves[0].provenance, "directions": every, "gauge": move.gauge}
    return labelled(pd.concat(frames, ignore_index=True), checkpoint), {"measured": facts, "spent": spent}


def labelled(frame: pd.DataFrame, checkpoint: Checkpoint | Held, **columns: object) -> pd.DataFrame:
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
