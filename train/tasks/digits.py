"""Handwritten digits: scikit-learn's 1,797 real scans of 8x8 pixels (UCI, 1998), upscaled to 32x32."""

from __future__ import annotations

import numpy as np

from train.tasks._source import Source
from train.tasks.images import resize

TAKES_PATH = False
SIZE = 32


def read(argument: str = "", *, size: int | None = None, seed: int = 0) -> Source:
    """Read the scans; they are the same for every ``seed``."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    gray = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # the scans count 0 to 16 dark pixels of 4x4
    images = np.repeat(gray[..., None], 3, axis=-1)
    return Source(
        name="digits",
        classes=tuple(str(c) for c in digits.target_names),
        labels={"train": digits.target.astype(np.int64)},
        take=lambda part, rows: resize(images[rows], size or SIZE),
    )
