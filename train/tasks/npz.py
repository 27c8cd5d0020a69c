"""Arrays in a .npz file: ``npz:PATH``.

Keys as in MedMNIST: ``train_images, train_labels`` and, where they exist, ``val_...`` and ``test_...``; or ``images,
labels``, which are then split. Images are uint8, (N, H, W) or (N, H, W, 1 or 3); labels are integers or strings, (N,)
or (N, 1).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from train.errors import TrainError
from train.tasks._source import SPLITS, Source
from train.tasks.images import resize

TAKES_PATH = True
KEYS = "images and labels, or train_images, train_labels and the same with val_ and test_"


def read(argument: str, *, size: int | None = None, seed: int = 0) -> Source:
    """Read the arrays.

    Raises
    ------
    TrainError
        No such file, a damaged file, missing keys, or arrays of other types and shapes than said above.
    """
    path = Path(argument).expanduser()
    if not path.is_file():
        raise TrainError(f"{path}: no such .npz file")
    arrays = _arrays(path)
    prefixes = {"train": ""} if "images" in arrays else {p: f"{p}_" for p in SPLITS if f"{p}_images" in arrays}
    if "train" not in prefixes:
        raise TrainError(f"{path}: expected the keys {KEYS}; found {', '.join(sorted(arrays)) or 'none'}")
    images, labels = {}, {}
    for part, prefix in prefixes.items():
        if f"{prefix}labels" not in arrays:
            raise TrainError(f"{path}: {prefix}images comes without {prefix}labels")
        images[part] = _images(arrays[f"{prefix}images"], size, f"{path}: {prefix}images")
        labels[part] = _labels(arrays[f"{prefix}labels"], len(images[part]), f"{path}: {prefix}labels")
        if size is None and images[part].shape[1:] != images["train"].shape[1:]:
            raise TrainError(
                f"{path}: {part} and train have images of different sizes; give a size, --img-size in training"
            )
    classes = np.unique(labels["train"])
    for part, values in labels.items():
        foreign = np.setdiff1d(values, classes)
        if len(foreign):
            raise TrainError(f"{path}: label {foreign[0]} occurs in {part} and not in train")
    return Source(
        name=path.name.removesuffix(".npz"),
        classes=tuple(str(c) for c in classes),
        labels={part: np.searchsorted(classes, values).astype(np.int64) for part, values in labels.items()},
        take=lambda part, rows: _rgb(images[part][rows], size),
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    # The arrays that a task is made of; pickled objects are refused.
    wanted = {f"{p}{kind}" for p in ("", *(f"{p}_" for p in SPLITS)) for kind in ("images", "labels")}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files if key in wanted}
    except Exception as error:  # damaged zip directories, headers and streams raise whatever the parser stumbles on
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TrainError(f"{path}: this .npz file does not read ({reason})") from error


def _images(images: np.ndarray, size: int | None, where: str) -> np.ndarray:
    shape = images.shape
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and shape[-1] in (1, 3))):
        raise TrainError(
            f"{where}: expected uint8 of shape (N, H, W) or (N, H, W, 1 or 3), found {images.dtype}, shape {shape}"
        )
    if 0 in shape:
        raise TrainError(f"{where}: there are no images or no pixels, shape {shape}")
    height, width = shape[1:3]
    if size is None and height != width:
        raise TrainError(f"{where}: {width}x{height} pixels, not square; give a size, --img-size in training")
    return images


def _labels(labels: np.ndarray, n: int, where: str) -> np.ndarray:
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.shape != (n,) or flat.dtype.kind not in "iuU":
        raise TrainError(
            f"{where}: expected {n} integers or strings, one an image, found {labels.dtype}, shape {labels.shape}"
        )
    return flat


def _rgb(images: np.ndarray, size: int | None) -> np.ndarray:
    """(n, H, W[, C]) to (n, S, S, 3)."""
    colour = np.broadcast_to(images.reshape(*images.shape[:3], -1), (*images.shape[:3], 3)).copy()
    return resize(colour, size or images.shape[1])
