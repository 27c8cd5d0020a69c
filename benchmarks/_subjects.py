"""What is measured: the shipped network fine-tuned on digits (a sharp and a calm place), a given run, a tiny net."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks._rows import say
from landscape.directions import Direction, orthogonal_pair
from landscape.objective import Objective
from landscape.space import Space

TRAINED = {
    "sharp": {"backbone": "vit_tiny32", "method": "full"},
    "calm": {"backbone": "random:vit_tiny32", "method": "full"},
    "lora": {"backbone": "vit_tiny32", "method": "lora", "dim": 8},
    "adaptformer": {"backbone": "vit_tiny32", "method": "adaptformer", "dim": 8},
    "onebit": {"backbone": "vit_tiny32", "method": "adaptformer", "dim": 8, "bits": 1},
}
"""Trained here: by name, what of the specification is not that of every other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A model with its images.

    Attributes
    ----------
    name, label
        In the command, and in the table.
    model
        In eval mode.
    names
        Of the tensors that move along a surface: all, the head still; of an adapter its own.
    images, targets
        (N, H, W, 3) uint8 and (N,) of the train split.
    transform
        Makes inputs of images.
    """

    name: str
    label: str
    model: nn.Module
    names: tuple[str, ...]
    images: NDArray[np.uint8]
    targets: Tensor
    transform: Callable[[NDArray[np.uint8]], Tensor]
    facts: dict[str, Any] = field(default_factory=dict)

    def data(self, samples: int) -> tuple[Tensor, Tensor]:
        """The first ``samples`` images as inputs, and their targets."""
        return self.transform(self.images[:samples]), self.targets[:samples]

    def space(self) -> Space:
        """Of the surfaces."""
        return Space(self.model, self.names, kind=self.facts["space"])

    def everything(self) -> Space:
        """All parameters, the head too."""
        return Space(self.model, [name for name, _ in self.model.named_parameters()], kind="full", head=True)

    def objective(self, samples: int, batch_size: int = 256) -> Objective:
        """The loss on the first ``samples`` images."""
        return Objective(self.model, *self.data(samples), batch_size=batch_size)

    def pair(self) -> tuple[Direction, Direction]:
        """The directions of the plane."""
        return orthogonal_pair(self.space(), (0, 1))


def trained(name: str, out: Path, *, epochs: int) -> Subject:
    """One of :data:`TRAINED` on digits; a folder that is there already is found."""
    from train.build import load_task
    from train.loop import fit
    from train.recipe import preset
    from train.spec import RunSpec

    how = {"task": "digits", "recipe": preset("short").with_epochs(epochs), **TRAINED[name]}
    spec = RunSpec.from_dict({**how, "recipe": how["recipe"].to_dict()})
    say(f"{name}: {spec.label} from {spec.backbone}, {epochs} epochs on {spec.task}")
    fit(spec, load_task(spec), out, quiet=True)
    return opened(out / spec.name, name=name)


def opened(path: Path, *, name: str = "run") -> Subject:
    """A run folder, or any file in it; its own tensors move."""
    from analyses.checkpoint import open_checkpoint
    from analyses.options import Options

    checkpoint = open_checkpoint(path, Options())
    kind = "full" if checkpoint.method == "full" else "factors"
    model, names = checkpoint.network(kind)
    metrics, what = {}, name
    if checkpoint.run is not None:
        metrics = checkpoint.run.metrics
        what = name if name in TRAINED else checkpoint.run.spec.backbone.partition("@")[0]
    return Subject(
        name=name,
        label=f"{checkpoint.label} ({what})",
        model=model.eval(),
        names=tuple(names),
        images=checkpoint.task.images("train"),
        targets=torch.tensor(checkpoint.task.labels("train")),
        transform=checkpoint.transform,
        facts={"space": kind, "metrics": {k: metrics[k] for k in ("train_loss_nats", "test_accuracy") if k in metrics}},
    )


def tiny(name: str = "tiny") -> Subject:
    """322 parameters on images of 4x4 pixels: everything runs in seconds, and the whole Hessian can be written out."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(4, (64,), generator=generator)
    images = torch.randint(128, (64, 4, 4, 3), generator=generator)
    for row, target in enumerate(targets.tolist()):
        images[row, target] += 120
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 4))
    subject = Subject(
        name=name,
        label=f"tiny net ({name})",
        model=model,
        names=("1.weight", "1.bias") if name == "adapters" else tuple(n for n, _ in model.named_parameters()),
        images=images.to(torch.uint8).numpy(),
        targets=targets,
        transform=_scaled,
        facts={"space": "full"},
    )
    inputs, _ = subject.data(len(targets))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimiser.step()
    optimiser.zero_grad()
    model.eval()
    return subject


def _scaled(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float().div_(255).contiguous()
