"""How many images a comparison takes for a requested standard error: chosen once, for all its models (NUMERICS 14)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from analyses.errors import AnalysisError

if TYPE_CHECKING:
    from analyses.checkpoint import Checkpoint
    from analyses.options import Options

PILOT = 64
"""Images of the pilot."""


def with_samples(checkpoints: Sequence[Checkpoint], options: Options, extent: float) -> Options:
    """The options with the images that give each model, in each of its spaces, the paired error ``options.rise_se``.

    The pilot looks at both ends of one line, at ``extent``, and the training images. All images are taken where even
    they are not enough.

    Raises
    ------
    AnalysisError
        If a loss at the end of a line is inf or NaN: no number of images is enough.
    """
    from landscape.directions import draw
    from landscape.pilot import samples_for

    assert options.rise_se is not None
    few = replace(options, samples=PILOT)
    most = PILOT
    for checkpoint in checkpoints:
        available = len(checkpoint.task.labels("train"))
        for kind in checkpoint.spaces():
            space = checkpoint.space(kind)
            objective = checkpoint.objectives(space.model, ("train",), few)["train"]
            direction = draw(space, options.seed)
            found = samples_for(objective, space, [direction], extent=extent, se=options.rise_se)
            if found.status == "diverged":
                raise AnalysisError(
                    f"{checkpoint.path}: the loss at alpha {extent:g} is inf or NaN in space {kind!r}; no number of "
                    "images gives it a standard error: give --samples and a smaller --extent"
                )
            most = max(most, min(int(found.value), available))
    return replace(options, samples=most)
