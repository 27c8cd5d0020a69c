"""Orientation: into which of eight angles an elongated object points; generated, 3,000 images of 32x32 pixels.

A structured task in the manner of VTAB's dsprites_orientation. An ellipse, a bar or a lens with varying length, width,
colour and place lies on a textured ground among small discs. Angles are of an axis, so they lie in [0, 180) degrees,
counted from the horizontal, counter-clockwise as seen.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from train.tasks import _draw
from train.tasks._source import Source
from train.tasks.images import resize

TAKES_PATH = False
IMAGES = 3000
BINS = 8
MARGIN = 0.1
"""Share of a bin left empty at each of its ends, so that every label is right."""
DISCS = 2


def read(argument: str = "", *, size: int | None = None, seed: int = 0) -> Source:
    """Generate the images of ``seed``."""
    rng = np.random.default_rng([seed, 0x0E])
    labels = rng.permutation(np.arange(IMAGES) % BINS)
    degrees = (labels + rng.uniform(MARGIN, 1 - MARGIN, IMAGES)) * (180 / BINS)
    images = draw(rng, degrees)
    edges = [f"{180 / BINS * k:g}" for k in range(BINS + 1)]
    return Source(
        name="orientation",
        classes=tuple(f"{a}-{b} deg" for a, b in pairwise(edges)),
        labels={"train": labels},
        take=lambda part, rows: resize(images[rows], size or _draw.SIZE),
    )


def draw(
    rng: np.random.Generator, degrees: np.ndarray, *, noise: float = 0.05, contrast: float = 0.04, discs: int = DISCS
) -> np.ndarray:
    """Images (N, 32, 32, 3) uint8 with one object at each angle of ``degrees`` (N,)."""
    n = len(degrees)
    canvas = _draw.backgrounds(rng, n, contrast=contrast)
    x, y = _draw.pixel_centres()
    for _ in range(discs):
        cx, cy = rng.uniform(0, _draw.SIZE, (2, n, 1, 1)).astype(np.float32)
        radius = rng.uniform(0.5, 1.5, (n, 1, 1)).astype(np.float32)
        _draw.paint(canvas, np.hypot(x - cx, y - cy) - radius, _draw.bright_colours(rng, n))
    # Half the length stays below the distance to the border: a cut object would show another axis.
    half = rng.uniform(8, 12, (n, 1, 1)).astype(np.float32)
    thin = half / rng.uniform(2.2, 4.5, (n, 1, 1)).astype(np.float32)
    cx, cy = half + 1 + (_draw.SIZE - 2 * half - 2) * rng.uniform(0, 1, (2, n, 1, 1)).astype(np.float32)
    angle = np.deg2rad(degrees).astype(np.float32)[:, None, None]
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = cos * (x - cx) - sin * (y - cy), sin * (x - cx) + cos * (y - cy)  # y points down
    kind = rng.integers(0, 3, (n, 1, 1))
    _draw.paint(canvas, outline(u, v, half, thin, kind), _draw.bright_colours(rng, n))
    return _draw.finish(rng, canvas, noise=noise)


def outline(u: np.ndarray, v: np.ndarray, half: np.ndarray, thin: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Distance, to first order, to an ellipse (0), a bar with round ends (1) or a lens (2), negative inside.

    ``half`` and ``thin`` are half the length (along u) and half the width.
    """
    level = np.hypot(u / half, v / thin)
    slope = np.hypot(u / half**2, v / thin**2) / np.maximum(level, np.float32(1e-3))
    ellipse = (level - 1) / np.maximum(slope, np.float32(1e-3))
    bar = np.hypot(np.maximum(abs(u) - (half - thin), 0), v) - thin
    bend = (half**2 + thin**2) / (2 * thin)  # two arcs of this radius meet at the tips
    lens = np.hypot(u, abs(v) + (bend - thin)) - bend
    return np.where(kind == 0, ellipse, np.where(kind == 1, bar, lens))
