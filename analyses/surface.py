"""A 2-D loss surface around a minimum: ``python -m analyses.surface CKPT [CKPT ...]``."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tyro.conf import Positional

from analyses.bounds import below, odd, positive
from analyses.command import Analysis
from analyses.errors import AnalysisError
from analyses.options import Move, Options, later

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from analyses.checkpoint import Checkpoint
    from analyses.command import OnStep
    from analyses.store import Tables
    from landscape.directions import Direction
    from landscape.objective import Objective
    from landscape.space import Space
    from landscape.surface import Surface


@dataclass(frozen=True, kw_only=True)
class Plane(Move):
    """Which plane is drawn through the minimum."""

    extent: float = 1.0
    """The plane ends at plus and minus this alpha in both directions."""
    points: int = 15
    """Points along an axis, the centre among them; odd."""
    space: Literal["own", "factors", "merged", "full"] = "own"
    """Which tensors move; own: the tensors of the method itself."""
    axes: Literal["random", "eigenvectors"] = later("random")
    """Two random filter-normalised directions, or the two eigenvectors of largest curvature, of the same norms."""
    error: float | None = later(None)
    """Evaluate only as many points as this error asks for, such as 0.005 of the range drawn (99th percentile)."""
    shard: str | None = later(None)
    """Measure only the first of four shares, 1/4, for several machines; the command without it joins what is there."""

    dimensions: ClassVar[int] = 2

    def kinds(self, checkpoint: Checkpoint) -> list[str]:
        """The one space that is drawn."""
        return [checkpoint.spaces()[0] if self.space == "own" else self.space]

    def __post_init__(self) -> None:
        """Refuse a plane without a centre, and an error or a share that is none.

        Raises
        ------
        AnalysisError
            For the first such setting.
        """
        positive(extent=self.extent, error=self.error)
        below(1, error=self.error)
        odd(points=self.points)
        if self.shard is not None:
            _share(self.shard)
            if self.error is not None:
                raise AnalysisError("a shard is a share of a whole grid: leave out --error, or --shard")


def compute(checkpoint: Checkpoint, options: Options, spec: Plane, on_step: OnStep) -> tuple[Tables, dict[str, Any]]:
    """The plane of one checkpoint, on train and test images."""
    from analyses.measure import labelled
    from landscape.shards import clear
    from landscape.surface import plane

    space, arguments = _plane(checkpoint, options, spec)
    found = plane(**arguments, error=spec.error, on_point=on_step)
    frame = labelled(found.to_frame(), checkpoint).assign(axes=spec.axes)
    evaluated = frame[frame["evaluated"]]
    summary = labelled(_summary(found, evaluated), checkpoint, space=space)
    spent = partial(clear, arguments["store"], set(zip(evaluated["x"], evaluated["y"], strict=True)))
    return {"points": frame, "summary": summary}, {
        "measured": {space: {**found.provenance, "gauge": spec.gauge}},
        "spent": [spent],
    }


def _summary(found: Surface, evaluated: pd.DataFrame) -> pd.DataFrame:
    """One row a split: how much was evaluated, the error that is estimated for the rest, the centre, and the range."""
    import pandas as pd

    estimated = found.provenance.get("interpolation", {}).get("estimated_error", {})
    rows = []
    for split, part in evaluated.groupby("split", sort=False):
        points: list[dict[Any, Any]] = part.to_dict("records")
        centre = next(p for p in points if p["x"] == p["y"] == 0)
        rises = sorted((p for p in points if math.isfinite(p["rise_nats"])), key=lambda p: p["rise_nats"]) or [centre]
        rows.append(
            {
                "split": split,
                "cells": len(found.xs) * len(found.ys),
                "evaluated": len(part),
                "estimated_error_share": estimated.get(split, 0.0),
                "centre_loss_nats": centre["loss_nats"],
                "centre_loss_se_nats": centre["loss_se_nats"],
                "centre_accuracy": centre["accuracy"],
                "lowest_rise_nats": rises[0]["rise_nats"],
                "highest_rise_nats": rises[-1]["rise_nats"],
                "highest_rise_se_nats": rises[-1]["rise_se_nats"],
                "nonfinite_points": sum(p["nonfinite"] > 0 for p in points),
                "samples": centre["samples"],
            }
        )
    return pd.DataFrame(rows)


def measure_shard(checkpoints: Sequence[Checkpoint], options: Options, spec: Plane, on_step: OnStep) -> pd.DataFrame:
    """Measure a share of the points of each plane and leave them for the command that draws the whole.

    Raises
    ------
    AnalysisError
        If the share is none, or of a surface whose points are chosen one after another.
    """
    import pandas as pd

    from landscape.surface import plane_share

    share = _share(spec.shard)
    if spec.error is not None:
        raise AnalysisError("a shard is a share of a whole grid: leave out --error, or --shard")
    rows = []
    for checkpoint in checkpoints:
        _, arguments = _plane(checkpoint, options, spec)
        points = plane_share(**arguments, share=share, on_point=on_step)
        rows.append({"run": checkpoint.path.name, "points": points, "parts": str(arguments["store"])})
    return pd.DataFrame(rows)


def _share(shard: str | None) -> tuple[int, int]:
    # "2/4" as (2, 4).
    found = re.fullmatch(r"(\d+)/(\d+)", shard or "")
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise AnalysisError(f"expected --shard I/N with I from 1 to N, such as 1/4, found {shard!r}")
    return int(found[1]), int(found[2])


def _plane(checkpoint: Checkpoint, options: Options, spec: Plane) -> tuple[str, dict[str, Any]]:
    """The space's name, and what is measured: arguments of ``landscape.surface.plane``."""
    from analyses.parallel import context
    from figures.tables import key_of
    from landscape.directions import orthogonal_pair
    from landscape.surface import grid

    context()  # workers, if any, fork from a server that has imported timm
    [kind] = spec.kinds(checkpoint)
    space = checkpoint.space(kind, **spec.of_space())
    axis = grid(spec.extent, spec.points)
    objectives = checkpoint.objectives(space.model, ("train", "test"), options)
    dx, dy = orthogonal_pair(space, (options.seed, options.seed + 1))
    if spec.axes == "eigenvectors":
        dx, dy = _eigenvectors(objectives["train"], space, (dx.norm, dy.norm), options.seed)
    # Measured points lie here until the table is whole: those of every grid and shard of one plane together.
    about = {name: value for name, value in asdict(spec).items() if name not in ("points", "extent", "error", "shard")}
    key = key_of({**options.settings(), **about, "checkpoint": checkpoint.identity})
    parts = checkpoint.folder / "tables" / "plane" / "parts"
    if not (parts / key).exists() and (others := sorted(path.parent for path in parts.glob("*/*.json"))):
        warnings.warn(
            "points of this plane were measured with other settings (samples, seed, threads, ...): not used, they "
            f"lie in {others[0]}",
            RuntimeWarning,
            stacklevel=2,
        )
    return kind, {
        "objectives": objectives,
        "space": space,
        "dx": dx,
        "dy": dy,
        "xs": axis,
        "ys": axis,
        "precision": spec.precision,
        "workers": options.workers,
        "store": parts / key,
    }


def _eigenvectors(objective: Objective, space: Space, norms: tuple[float, float], seed: int) -> list[Direction]:
    """The two eigenvectors of the training loss of largest curvature, each of the norm of a filter-normalised one."""
    from landscape.curvature import Hessian, top_eigenvalues

    with Hessian(objective, space) as hessian:
        found = top_eigenvalues(hessian, 2, seed=seed)
        labels = [
            f"eigenvector {rank}, {value:.4g} nats, residual {residual:.1g}"
            for rank, (value, residual) in enumerate(zip(found.values, found.residuals, strict=True), 1)
        ]
        return [
            hessian.direction(vector, label, norm=norm)
            for vector, label, norm in zip(found.vectors, labels, norms, strict=True)
        ]


ANALYSIS = Analysis(
    name="surface",
    part="plane",
    compute=compute,
    shown=("summary",),
    steps=lambda checkpoint, spec: spec.points**2 if spec.error is None else None,
    assumed=lambda options, spec: f"{spec.points} x {spec.points} points, {options.samples} images of each split",
)


def main(checkpoints: Positional[tuple[Path, ...]], /, options: Options = Options(), plane: Plane = Plane()) -> None:
    """Compute the loss surface around each checkpoint on a plane of two directions.

    Parameters
    ----------
    checkpoints
        Run folders, or weights of whole networks with --backbone and --task.
    options
        What every analysis takes.
    plane
        Which plane is drawn through the minimum.
    """
    if plane.shard is None:
        ANALYSIS.run(checkpoints, options, plane)
    else:
        from analyses.checkpoint import open_all
        from analyses.parallel import threads
        from figures.command import emit, progress

        opened, _ = open_all(checkpoints, options)
        total = len(opened) * -(-(plane.points**2) // _share(plane.shard)[1])
        with threads(options.threads_each()), progress(total, "points", options.quiet) as bar:
            emit(measure_shard(opened, options, plane, lambda *_: bar.update()), options.json)


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.surface")
