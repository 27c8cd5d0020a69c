"""Tasks: named images with labels, their split, their transform and their fingerprint.

A task is ``digits``, ``counting``, ``orientation``, ``folder:PATH`` or ``npz:PATH``; a new file here with a constant
``TAKES_PATH`` and a function ``read(argument, *, size, seed) -> Source`` is a new task. Every split is held decoded in
memory. Importing this module loads no torch.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from train.errors import TrainError, nearest
from train.tasks._source import SPLITS, Source, split
from train.tasks.images import resize

if TYPE_CHECKING:
    import pandas as pd
    import torch

__all__ = ["SPLITS", "Source", "Task", "Transform", "load", "names"]

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
_NO_TASKS = {"images"}  # the shared decoder


@dataclass(frozen=True, kw_only=True)
class Transform:
    """From a uint8 image to what a backbone takes: resize (squashing, no crop), divide by 255, normalise.

    It is torchvision's ``Resize((size, size)), ToTensor(), Normalize(mean, std)`` on a Pillow image: VTAB-1k's manner.
    """

    size: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise TrainError(f"Transform: size must be at least 1 pixel, found {self.size}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise TrainError(f"Transform: expected 3 means and 3 positive deviations, found {self.mean} and {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            raise TrainError(
                f"Transform: interpolation is one of {', '.join(INTERPOLATIONS)}, found {self.interpolation!r}"
                + nearest(self.interpolation, INTERPOLATIONS)
            )

    def describe(self) -> str:
        """The exact steps, in one line."""
        return (
            f"resize to {self.size}x{self.size} ({self.interpolation}, only where the size differs), divide by 255, "
            f"subtract {_numbers(self.mean)}, divide by {_numbers(self.std)}"
        )

    def __call__(self, images: np.ndarray) -> torch.Tensor:
        """Transform (N, H, W, 3) uint8 to (N, 3, size, size) float32."""
        import torch

        pixels = torch.from_numpy(resize(images, self.size, self.interpolation).copy()).permute(0, 3, 1, 2)
        inputs = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        mean, std = (torch.tensor(v, dtype=torch.float32).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return inputs.sub_(mean).div_(std)


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Named images with labels in the splits train, val and test; ``load`` makes it.

    ``name`` holds no path: of ``folder:PATH`` and ``npz:PATH`` it is the folder's or the file's own name. ``seed`` is
    the seed of the split. ``data`` has (images uint8 (N, H, W, 3), labels int64 (N,)) for every split, not to be
    written to.
    """

    name: str
    classes: tuple[str, ...]
    seed: int
    data: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def images(self, split: str) -> np.ndarray:
        """The images of a split: (N, H, W, 3) uint8, in a fixed random order."""
        return self._part(split)[0]

    def labels(self, split: str) -> np.ndarray:
        """The labels of a split: (N,) int64, positions in ``classes``."""
        return self._part(split)[1]

    def tensors(self, split: str, transform: Transform) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (N, 3, S, S) float32 and labels (N,) int64 of a split. ``fit_on`` is the trainer's matter."""
        import torch

        images, labels = self._part(split)
        return transform(images), torch.tensor(labels)

    @property
    def size(self) -> int:
        """The side of the images in pixels, before any transform."""
        return int(self.images("train").shape[1])

    @property
    def counts(self) -> dict[str, int]:
        """How many images each split has."""
        return {name: len(self.labels(name)) for name in SPLITS}

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over classes, split, labels and pixels: equal if and only if the data are."""
        digest = hashlib.sha256(json.dumps([list(self.classes), self.counts, self.size]).encode())
        for name in SPLITS:
            digest.update(np.ascontiguousarray(self.labels(name), dtype="<i8").data)
            digest.update(np.ascontiguousarray(self.images(name)).data)
        return digest.hexdigest()[:16]

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel over the training images, on the scale [0, 1]."""
        pixels = self.images("train").reshape(-1, 3) / 255
        return tuple(pixels.mean(0).tolist()), tuple(pixels.std(0).tolist())

    def to_frame(self) -> pd.DataFrame:
        """Images per class (rows) and split (columns)."""
        import pandas as pd

        n = len(self.classes)
        columns = {name: np.bincount(self.labels(name), minlength=n) for name in SPLITS}
        return pd.DataFrame(columns, index=pd.Index(self.classes, name="class"))

    def __repr__(self) -> str:
        counts = ", ".join(f"{k} {v}" for k, v in self.counts.items())
        return f"Task({self.name!r}: {len(self.classes)} classes, {counts}, {self.size}x{self.size})"

    def _repr_html_(self) -> str:
        return f"<p>{self.name}, {self.size}&times;{self.size}, {self.fingerprint}</p>{self.to_frame().to_html()}"

    def _part(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        if split not in self.data:
            raise TrainError(f"a split is one of {', '.join(SPLITS)}, found {split!r}{nearest(split, SPLITS)}")
        return self.data[split]


def names() -> list[str]:
    """The kinds of tasks there are: the names of the files here."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(f.stem for f in files if not f.stem.startswith("_") and f.stem not in _NO_TASKS)


def load(
    name: str, *, train_size: int = 1000, data_seed: int = 0, size: int | None = None, test_size: int | None = None
) -> Task:
    """Read a task, split it and decode it.

    Parameters
    ----------
    name
        ``digits``, ``counting``, ``orientation``, ``folder:PATH`` (class folders or a .tar of them) or ``npz:PATH``.
    train_size
        Labelled images to train with: 80% are the split train, 20% the split val (VTAB-1k's 800 and 200).
    data_seed
        Seed of the split, and of the images where they are generated.
    size
        Side in pixels to which images are brought when they are decoded; their own if left out.
    test_size
        Cut the test set to so many images, stratified.

    Raises
    ------
    TrainError
        An unknown name, data that cannot be read, or a split that the data do not allow.
    """
    kind, colon, argument = name.partition(":")
    if kind not in names():
        hint = f"; for a folder of images: folder:{name}" if Path(name).exists() else nearest(kind, names())
        raise TrainError(f"unknown task {name!r}, expected one of {', '.join(names())}{hint}")
    if data_seed < 0:
        raise TrainError(f"data_seed must not be negative, found {data_seed}")
    if size is not None and size < 1:
        raise TrainError(f"size must be at least 1 pixel, found {size}")
    module = importlib.import_module(f"{__name__}.{kind}")
    if module.TAKES_PATH and not argument:
        raise TrainError(f"task {kind} needs a path: {kind}:PATH")
    if colon and not module.TAKES_PATH:
        raise TrainError(f"task {kind} takes nothing after its name, found {name!r}")
    source: Source = module.read(argument, size=size, seed=data_seed)
    chosen = split(source, train_size=train_size, test_size=test_size, seed=data_seed)
    data = {}
    for part, (where, rows) in chosen.items():
        data[part] = (source.take(where, rows), source.labels[where][rows].astype(np.int64))
        for array in data[part]:
            array.setflags(write=False)
    return Task(name=source.name, classes=source.classes, seed=data_seed, data=data)


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{v:g}" for v in values) + ")"
