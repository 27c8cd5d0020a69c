"""Counting: how many shapes (1 to 8) lie on a textured ground; generated, 3,000 images of 32x32 pixels.

A structured task in the manner of VTAB's clevr_count. Shapes do not touch; a size common to an image and a size of each
shape are drawn apart from the number, so that the painted area alone does not tell it.
"""

from __future__ import annotations

import numpy as np

from train.tasks import _draw
from train.tasks._source import Source
from train.tasks.images import resize

TAKES_PATH = False
IMAGES = 3000
MOST = 8
GAP = 1.5
"""Least distance of two shapes, in pixels."""
PLACES_TRIED = 48


def read(argument: str = "", *, size: int | None = None, seed: int = 0) -> Source:
    """Generate the images of ``seed``."""
    rng = np.random.default_rng([seed, 0xC0])
    labels = rng.permutation(np.arange(IMAGES) % MOST)
    images = draw(rng, labels + 1)
    return Source(
        name="counting",
        classes=tuple(str(k) for k in range(1, MOST + 1)),
        labels={"train": labels},
        take=lambda part, rows: resize(images[rows], size or _draw.SIZE),
    )


def draw(rng: np.random.Generator, number: np.ndarray, *, noise: float = 0.03, contrast: float = 0.04) -> np.ndarray:
    """Images (N, 32, 32, 3) uint8 with ``number`` (N,) shapes each."""
    n = len(number)
    centre, radius = place(rng, n)
    canvas = _draw.backgrounds(rng, n, contrast=contrast)
    x, y = _draw.pixel_centres()
    kinds = rng.integers(0, 3, (n, MOST))
    angles = rng.uniform(0, np.pi, (n, MOST)).astype(np.float32)
    # The largest shapes are placed first; which of the places are used must not depend on that.
    order = rng.permuted(np.tile(np.arange(MOST), (n, 1)), axis=1)
    for j in range(MOST):
        drawn = np.flatnonzero(number > j)
        k = order[drawn, j]
        cx, cy = (centre[drawn, k, a, None, None] for a in (0, 1))
        cos, sin = np.cos(angles[drawn, j])[:, None, None], np.sin(angles[drawn, j])[:, None, None]
        u, v = cos * (x - cx) + sin * (y - cy), cos * (y - cy) - sin * (x - cx)
        distance = outline(u, v, radius[drawn, k, None, None], kinds[drawn, j, None, None])
        part = canvas[drawn]
        _draw.paint(part, distance, _draw.bright_colours(rng, len(drawn)))
        canvas[drawn] = part
    return _draw.finish(rng, canvas, noise=noise)


def outline(u: np.ndarray, v: np.ndarray, radius: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Distance to a disc (0), a square (1) or a triangle (2) with circumscribed radius ``radius``, negative inside."""
    disc = np.hypot(u, v) - radius
    square = np.maximum(abs(u), abs(v)) - radius * np.float32(np.sqrt(0.5))
    triangle = np.maximum(np.float32(np.sqrt(0.75)) * abs(u) + v / 2, -v) - radius / 2
    return np.where(kind == 0, disc, np.where(kind == 1, square, triangle))


def place(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres (N, 8, 2) and radii (N, 8), largest first, of circles inside the image that keep ``GAP`` between them."""
    centre, radius = np.empty((n, MOST, 2), np.float32), np.empty((n, MOST), np.float32)
    open_ = np.arange(n)
    while len(open_):  # the few images whose shapes found no place are drawn anew
        common = rng.uniform(0.9, 1.05, (len(open_), 1))
        r = -np.sort(-common * rng.uniform(2.8, 3.6, (len(open_), MOST)), axis=1).astype(np.float32)
        c = np.empty((len(open_), MOST, 2), np.float32)
        fits = np.ones(len(open_), dtype=bool)
        for j in range(MOST):
            edge = r[:, j, None, None] + 1
            tried = edge + (_draw.SIZE - 2 * edge) * rng.uniform(0, 1, (len(open_), PLACES_TRIED, 2))
            apart = np.linalg.norm(tried[:, :, None] - c[:, None, :j], axis=-1)
            free = (apart > r[:, j, None, None] + r[:, None, :j] + GAP).all(-1)
            fits &= free.any(1)
            c[:, j] = tried[np.arange(len(open_)), free.argmax(1)]
        centre[open_[fits]], radius[open_[fits]] = c[fits], r[fits]
        open_ = open_[~fits]
    return centre, radius
