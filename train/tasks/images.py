"""Class folders of image files: find them, decode them once."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Sequence

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}


def list_class_folders(root: Path) -> tuple[list[Path], np.ndarray, list[str]]:
    """List the image files of ``root/<class>/*`` in sorted order.

    Returns
    -------
    files, labels (N,), classes
        ``labels[i]`` is the position in ``classes`` of the folder that holds ``files[i]``.
    """
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (root / name).iterdir() if p.suffix.lower() in SUFFIXES)
        files += found
        labels += [label] * len(found)
    return files, np.asarray(labels, dtype=np.int64), classes


def decode(files: Sequence[Path], size: int) -> np.ndarray:
    """Decode images to ``(N, size, size, 3)`` uint8, resized by bicubic interpolation where they differ."""
    out = np.empty((len(files), size, size, 3), dtype=np.uint8)
    for i, file in enumerate(files):
        out[i] = decode_one(file, size, str(file))
    return out


def decode_one(file: Path | IO[bytes], size: int | None, name: str) -> np.ndarray:
    """Decode one image to (H, W, 3) uint8, resized to ``size`` x ``size`` unless that is None; ``name`` is for errors.

    Raises
    ------
    TrainError
        The file is no image, is damaged, or has more than 8 bits a channel.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            mode, rgb = image.mode, image.convert("RGB")
    except Exception as error:  # decoders of damaged files raise whatever their formats make them stumble on
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TrainError(f"{name}: this image does not decode ({reason})") from error
    if mode.startswith(("I", "F")):  # Pillow clips these to white without a word
        raise TrainError(f"{name}: expected 8 bits a channel, found an image of Pillow's mode {mode}")
    if size is not None and rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(rgb)


def resize(images: np.ndarray, size: int, interpolation: str = "bicubic") -> np.ndarray:
    """Bring (N, H, W, 3) uint8 images to ``size`` x ``size`` with one of Pillow's antialiased filters."""
    if images.shape[1:3] == (size, size):
        return images
    from PIL import Image

    how = Image.Resampling[interpolation.upper()]
    out = np.empty((len(images), size, size, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        out[i] = np.asarray(Image.fromarray(image).resize((size, size), how))
    return out
