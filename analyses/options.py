"""Options that every analysis shares, under the same names everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every analysis takes.

    A field that could change a number is part of the identity of the tables; the others are not.
    """

    samples: int = 256
    """Images of each split that the loss is taken over, the same for every model that is compared."""
    batch_size: int = 128
    """Images in one forward pass; the result does not depend on it beyond rounding."""
    seed: int = 0
    """Seed of the first direction; the others follow."""
    device: str = "cpu"
    """Where the forward passes run: cpu, cuda, cuda:1, mps."""
    backbone: str | None = None
    """For weights that are no run folder: the timm name of the architecture. For a run: where its weights lie now."""
    task: str | None = None
    """For weights that are no run folder: the task, for example folder:PATH. For a run: where its data lie now."""
    train_size: int = 1000
    """For weights that are no run folder: images to split into train (80 %) and val."""
    img_size: int | None = None
    """For weights that are no run folder: height and width of the input in pixels."""
    out: Path | None = None
    """Where tables and figures go; below the run itself when it is one run, ``./analysis`` otherwise."""
    json: bool = False
    """Print the result as JSON."""
    quiet: bool = False
    """No progress, no report of assumptions."""

    def settings(self) -> dict[str, object]:
        """What of the options belongs to the identity of a result, and the threads that it is computed with."""
        import torch

        return {
            "samples": self.samples,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "device": self.device,
            "threads": torch.get_num_threads(),
        }
