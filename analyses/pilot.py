"""How many images a comparison takes for a requested standard error: chosen once, for all its models (NUMERICS 14)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from analyses.errors import AnalysisError
from analyses.options import Move
from analyses.store import announce

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from analyses.checkpoint import Checkpoint
    from analyses.options import Options

PILOT = 64
"""Images of the pilot."""


def with_samples(checkpoints: Sequence[Checkpoint], options: Options, spec: DataclassInstance) -> Options:
    """The options with the images that give each model the paired error ``options.rise_se`` in the spaces of ``spec``.

    The pilot looks at the ends of the first line, or at the corners of the plane, and at the training images (those of
    the test for an analysis of them alone). All images are taken where even they are not enough, and that is said.

    Raises
    ------
    AnalysisError
        If a loss at the end of a line is inf or NaN: no number of images is enough.
    """
    from landscape.directions import draw, orthogonal_pair
    from landscape.pilot import samples_for

    assert options.rise_se is not None
    few = replace(options, samples=PILOT)
    move = spec if isinstance(spec, Move) else Move()
    extent, split = getattr(spec, "extent", 1.0), getattr(spec, "split", "train")
    most = PILOT
    for checkpoint in checkpoints:
        available = len(checkpoint.task.labels(split))
        for kind in move.kinds(checkpoint):
            space = checkpoint.space(kind, **move.of_space())
            objective = checkpoint.objectives(space.model, (split,), few)[split]
            plane = move.dimensions > 1
            seeds = (options.seed, options.seed + 1)
            directions = orthogonal_pair(space, seeds) if plane else [draw(space, options.seed)]
            found = samples_for(objective, space, directions, extent=extent, se=options.rise_se)
            if found.status == "diverged":
                raise AnalysisError(
                    f"{checkpoint.path}: the loss at alpha {extent:g} is inf or NaN in space {kind!r}; no number of "
                    "images gives it a standard error: give --samples and a smaller --extent"
                )
            if found.value > available:
                announce(
                    options.quiet,
                    f"{checkpoint.path.name}, {kind} space: a paired error of {options.rise_se:g} nats at alpha "
                    f"{extent:g} would take {found.value:,.0f} images, there are {available:,}: it is missed",
                )
            most = max(most, min(int(found.value), available))
    return replace(options, samples=most)
