"""The card of measures of one checkpoint: every sharpness, curvature at both ends, on lines and in all, and blocks."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from analyses.errors import AnalysisError
from analyses.options import Move, settings_of
from analyses.store import Tables, announce, cached

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from analyses.checkpoint import Checkpoint
    from analyses.options import Options
    from landscape.estimate import Estimate
    from landscape.objective import Objective
    from landscape.space import Space

CURVATURE = {
    "eigenvalues": "hessian_eigenvalues",
    "smallest": "hessian_smallest_eigenvalue",
    "directional": "directional_curvature",
    "trace": "hessian_trace",
    "gauss_newton": "gauss_newton_trace",
    "fisher": "fisher_empirical_trace",
    "density": "spectral_density",
}
"""By name on the command line, what the table calls them."""
LARGEST = 5
"""Eigenvalues at the upper end."""


def measures(text: str) -> list[str]:
    """The measures of ``all``, or of names with commas between them: those of sharpness, and of :data:`CURVATURE`.

    Raises
    ------
    AnalysisError
        For the name of a measure that there is not.
    """
    from figures.tables import nearest
    from landscape.sharpness import names

    known = [*names(), *CURVATURE]
    chosen = [name.strip() for name in text.split(",")]
    for name in chosen:
        if name not in ("all", *known):
            raise AnalysisError(f"unknown measure {name!r}{nearest(name, known)}; there are all, {', '.join(known)}")
    return known if "all" in chosen else list(dict.fromkeys(chosen))


def card(checkpoint: Checkpoint, options: Options, chosen: Sequence[str], move: Move) -> Tables:
    """Tables ``measures``, ``blocks`` and, if asked for, ``density``, of the training loss, a row a space and measure.

    Each measure that is finished is kept below the checkpoint under what it depends on, and read from there: a killed
    run goes on with the next one, and a run that asks for others measures those alone.

    Parameters
    ----------
    checkpoint, options
        Whose card, and on which images.
    chosen
        As of :func:`measures`.
    move
        What moves. Running statistics stay those of training: a gradient or a Hessian is taken at fixed ones.
    """
    import pandas as pd

    from analyses.measure import labelled
    from figures.tables import key_of

    moved = Move(**{f.name: getattr(move, f.name) for f in fields(Move)})  # without the lines of the same command
    about = {**options.settings(), **settings_of(moved), "checkpoint": checkpoint.identity}
    folder = checkpoint.folder / "tables" / "card" / key_of(about)
    tables: dict[str, list[pd.DataFrame]] = {}
    for kind in move.kinds(checkpoint):
        moving = checkpoint.space(kind, **{**move.of_space(), "batch_norm": "freeze"})
        objective = checkpoint.objectives(moving.model, ("train",), options)["train"]
        for name in chosen:
            measure = partial(_measured, objective, moving, name, options.seed)
            found = cached(folder / kind / name, {**about, "measure": name, "space": kind}, measure)
            announce(options.quiet, f"{kind} space, {name}: {_said(found)}")
            for table, frame in found.items():
                tables.setdefault(table, []).append(labelled(frame, checkpoint, space=kind))
    return {table: pd.concat(frames, ignore_index=True) for table, frames in tables.items()}


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
    from landscape.curvature import Hessian, spectral_density
    from landscape.errors import LandscapeError
    from landscape.estimate import Estimate

    try:
        if name == "density":
            return [], {"density": spectral_density(Hessian(objective, space), seed=seed).to_frame()}
        return _estimates(objective, space, name, seed), {}
    except LandscapeError as error:  # such as weights quantised again: the other measures go on
        reason = {"reason": str(error)}
        failed = Estimate(measure=CURVATURE[name], value=float("nan"), unit="nats", status="failed", details=reason)
        return [failed], {}


def _estimates(objective: Objective, space: Space, name: str, seed: int) -> list[Estimate]:
    from landscape.curvature import Fisher, GaussNewton, Hessian, along, hutch_pp, top_eigenvalues

    if name == "gauss_newton":
        found = hutch_pp(GaussNewton(objective, space), seed=seed)
        # of cross entropy, the one loss here, both are one matrix
        return [found, replace(found, measure="fisher_true_trace")]
    if name == "fisher":
        return [hutch_pp(Fisher(objective, space, kind="empirical"), seed=seed)]
    hessian = Hessian(objective, space)
    if name == "directional":
        return [along(hessian, seed=seed)]
    if name == "trace":
        return [hutch_pp(hessian, seed=seed)]
    if name == "smallest":
        return top_eigenvalues(hessian, 1, end="smallest", seed=seed).estimates()
    return top_eigenvalues(hessian, LARGEST, seed=seed).estimates()


def _said(tables: Tables) -> str:
    if "measures" not in tables:
        return "done"
    rows = tables["measures"].itertuples()
    return "; ".join(f"{row.measure} {row.value:.4g} {row.unit}, {row.status}" for row in rows)
