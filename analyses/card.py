"""The card of measures of one checkpoint: every sharpness, the Hessian's ends, trace and density, and its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analyses.errors import AnalysisError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd

    from analyses.checkpoint import Checkpoint
    from analyses.options import Move, Options
    from landscape.estimate import Estimate
    from landscape.objective import Objective
    from landscape.space import Space

CURVATURE = ("eigenvalues", "trace", "density")
LARGEST = 5
"""Eigenvalues at the upper end."""


def card(checkpoint: Checkpoint, options: Options, wanted: str, move: Move) -> dict[str, pd.DataFrame]:
    """Tables ``measures``, ``blocks`` and, if asked for, ``density``, of the training loss, a row a space and measure.

    Parameters
    ----------
    checkpoint, options
        Whose card, and on which images.
    wanted
        ``all``, or names with commas between them: sharpness measures, and eigenvalues, trace, density.
    move
        What moves. Running statistics stay those of training: a gradient or a Hessian is taken at fixed ones.

    Raises
    ------
    AnalysisError
        For the name of a measure that there is not.
    """
    import pandas as pd

    from analyses.measure import labelled
    from figures.tables import nearest
    from landscape.sharpness import names

    chosen = [*names(), *CURVATURE] if wanted == "all" else [name.strip() for name in wanted.split(",")]
    for name in chosen:
        if name not in (*names(), *CURVATURE):
            known = (*names(), *CURVATURE)
            raise AnalysisError(f"unknown measure {name!r}{nearest(name, known)}; there are all, {', '.join(known)}")
    tables: dict[str, list[pd.DataFrame]] = {}
    for kind in checkpoint.spaces(move.weights):
        moving = checkpoint.space(kind, **{**move.of_space(), "batch_norm": "freeze"})
        objective = checkpoint.objectives(moving.model, ("train",), options)["train"]
        for table, frame in _measured(objective, moving, chosen, options.seed):
            tables.setdefault(table, []).append(labelled(frame, checkpoint, space=kind))
    return {table: pd.concat(frames, ignore_index=True) for table, frames in tables.items()}


def _measured(objective: Objective, space: Space, chosen: list[str], seed: int) -> Iterator[tuple[str, pd.DataFrame]]:
    import pandas as pd

    from landscape.sharpness import names
    from landscape.sharpness.card import measure_all
    from landscape.sharpness.per_layer import per_layer

    estimates = measure_all(objective, space, [name for name in chosen if name in names()], seed=seed)
    if "average" in chosen:
        yield "blocks", per_layer(objective, space, seed=seed).to_frame()
    if set(chosen) & set(CURVATURE):
        found, density = _curvature(objective, space, chosen, seed)
        estimates += found
        if density is not None:
            yield "density", density
    yield "measures", pd.DataFrame([{**e.row(), "reason": e.details.get("reason", "")} for e in estimates])


def _curvature(
    objective: Objective, space: Space, chosen: list[str], seed: int
) -> tuple[list[Estimate], pd.DataFrame | None]:
    from landscape.curvature import Hessian, hutch_pp, spectral_density, top_eigenvalues
    from landscape.errors import LandscapeError
    from landscape.estimate import Estimate

    estimates: list[Estimate] = []

    def attempt(name: str, measure: Callable[[], Any]) -> Any:
        try:
            return measure()
        except LandscapeError as error:  # one that cannot be measured does not keep the others from it
            estimates.append(
                Estimate(measure=name, value=float("nan"), unit="nats", status="failed", details={"reason": str(error)})
            )
            return None

    def of_hessian() -> pd.DataFrame | None:
        with Hessian(objective, space) as hessian:
            if "eigenvalues" in chosen:
                found = attempt("hessian_eigenvalues", lambda: top_eigenvalues(hessian, LARGEST, seed=seed))
                estimates.extend(found.estimates() if found else ())
            if "trace" in chosen:
                found = attempt("hessian_trace", lambda: hutch_pp(hessian, seed=seed))
                estimates.extend([found] if found else ())
            if "density" in chosen:
                found = attempt("spectral_density", lambda: spectral_density(hessian, seed=seed))
                return found.to_frame() if found else None
        return None

    density = attempt("hessian", of_hessian)  # refused as a whole where weights are quantised again
    return estimates, density
