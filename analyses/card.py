"""The card of measures of one checkpoint: every sharpness, the Hessian's ends, trace and density, and its blocks."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

from analyses.errors import AnalysisError
from analyses.options import settings_of
from analyses.store import Tables, announce, cached

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pandas as pd

    from analyses.checkpoint import Checkpoint
    from analyses.options import Move, Options
    from landscape.estimate import Estimate
    from landscape.objective import Objective
    from landscape.space import Space

CURVATURE = {"eigenvalues": "hessian_eigenvalues", "trace": "hessian_trace", "density": "spectral_density"}
"""By name on the command line, what the table calls them."""
LARGEST = 5
"""Eigenvalues at the upper end."""


def measures(text: str) -> list[str]:
    """The measures of ``all``, or of names with commas between them: sharpness measures, eigenvalues, trace, density.

    Raises
    ------
    AnalysisError
        For the name of a measure that there is not.
    """
    from figures.tables import nearest
    from landscape.sharpness import names

    known = [*names(), *CURVATURE]
    chosen = known if text == "all" else [name.strip() for name in text.split(",")]
    for name in chosen:
        if name not in known:
            raise AnalysisError(f"unknown measure {name!r}{nearest(name, known)}; there are all, {', '.join(known)}")
    return chosen


def card(
    checkpoint: Checkpoint, options: Options, chosen: Sequence[str], move: Move, parts: Path
) -> tuple[dict[str, pd.DataFrame], Callable[[], None]]:
    """Tables ``measures``, ``blocks`` and, if asked for, ``density``, of the training loss, a row a space and measure.

    And what deletes the finished measures, once the tables are written.

    Parameters
    ----------
    checkpoint, options
        Whose card, and on which images.
    chosen
        As of :func:`measures`.
    move
        What moves. Running statistics stay those of training: a gradient or a Hessian is taken at fixed ones.
    parts
        A folder for finished measures, from which a killed run goes on.
    """
    import pandas as pd

    from analyses.measure import labelled
    from figures.tables import key_of

    about = {**options.settings(), **settings_of(move), "checkpoint": checkpoint.identity}
    parts /= key_of(about)
    tables: dict[str, list[pd.DataFrame]] = {}
    for kind in move.kinds(checkpoint):
        moving = checkpoint.space(kind, **{**move.of_space(), "batch_norm": "freeze"})
        objective = checkpoint.objectives(moving.model, ("train",), options)["train"]
        for name in chosen:
            measure = partial(_measured, objective, moving, name, options.seed)
            found = cached(parts / kind / name, {**about, "measure": name, "space": kind}, measure)
            announce(options.quiet, f"{kind} space, {name}: {_said(found)}")
            for table, frame in found.items():
                tables.setdefault(table, []).append(labelled(frame, checkpoint, space=kind))
    joined = {table: pd.concat(frames, ignore_index=True) for table, frames in tables.items()}
    return joined, partial(shutil.rmtree, parts, ignore_errors=True)


def _measured(objective: Objective, space: Space, name: str, seed: int) -> tuple[Tables, dict[str, Any]]:
    import pandas as pd

    from landscape.sharpness.card import measure_all
    from landscape.sharpness.per_layer import per_layer

    estimates, further = (
        _curvature(objective, space, name, seed)
        if name in CURVATURE
        else (measure_all(objective, space, [name], seed=seed), {})
    )
    if name == "average":
        further = {"blocks": per_layer(objective, space, seed=seed).to_frame()}
    rows = [{**e.row(), "reason": e.details.get("reason", "")} for e in estimates]
    return {**({"measures": pd.DataFrame(rows)} if rows else {}), **further}, {}


def _curvature(objective: Objective, space: Space, name: str, seed: int) -> tuple[list[Estimate], Tables]:
    from landscape.curvature import Hessian, hutch_pp, spectral_density, top_eigenvalues
    from landscape.errors import LandscapeError
    from landscape.estimate import Estimate

    try:
        with Hessian(objective, space) as hessian:
            if name == "eigenvalues":
                return list(top_eigenvalues(hessian, LARGEST, seed=seed).estimates()), {}
            if name == "trace":
                return [hutch_pp(hessian, seed=seed)], {}
            return [], {"density": spectral_density(hessian, seed=seed).to_frame()}
    except LandscapeError as error:  # such as weights quantised again: the other measures go on
        reason = {"reason": str(error)}
        failed = Estimate(measure=CURVATURE[name], value=float("nan"), unit="nats", status="failed", details=reason)
        return [failed], {}


def _said(tables: Tables) -> str:
    if "measures" not in tables:
        return "done"
    rows = tables["measures"].itertuples()
    return "; ".join(f"{row.measure} {row.value:.4g} {row.unit}, {row.status}" for row in rows)
