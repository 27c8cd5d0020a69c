"""Drawing for the procedural tasks: many small images at once, antialiased, from one random generator.

Letters: N images, S pixels a side. Coordinates are pixels, (0, 0) the corner of the image; colours are in [0, 1].
"""

from __future__ import annotations

import numpy as np

SIZE = 32
WAVES = 4


def pixel_centres(size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates x and y of pixel centres: (1, S) and (S, 1)."""
    at = np.arange(size, dtype=np.float32) + np.float32(0.5)
    return at[None, :], at[:, None]


def backgrounds(rng: np.random.Generator, n: int, *, contrast: float = 0.04) -> np.ndarray:
    """Textured grounds (N, S, S, 3): a dark colour plus a few plane waves."""
    colour = rng.uniform(0.05, 0.4, (n, 3)).astype(np.float32)
    x, y = pixel_centres()
    texture = np.zeros((n, SIZE, SIZE), dtype=np.float32)
    for _ in range(WAVES):
        fx, fy = rng.uniform(-1.2, 1.2, (2, n, 1, 1)).astype(np.float32)
        phase = rng.uniform(0, 2 * np.pi, (n, 1, 1)).astype(np.float32)
        texture += np.cos(fx * x + fy * y + phase)
    strength = rng.uniform(0.2, 1, (n, 1, 1, 1)).astype(np.float32) * np.float32(contrast)
    tint = rng.uniform(0.3, 1, (n, 1, 1, 3)).astype(np.float32)
    return colour[:, None, None, :] + strength * tint * texture[..., None]


def bright_colours(rng: np.random.Generator, n: int) -> np.ndarray:
    """Colours (N, 3) of any hue whose strongest channel is at least 0.7: they stand out from every ground."""
    colour = rng.uniform(0.15, 1, (n, 3))
    return (colour * rng.uniform(0.7, 1, (n, 1)) / colour.max(1, keepdims=True)).astype(np.float32)


def paint(canvas: np.ndarray, distance: np.ndarray, colour: np.ndarray) -> None:
    """Paint, in place, where the signed distance (N, S, S) to an outline in pixels is negative."""
    cover = np.clip(np.float32(0.5) - distance, 0, 1)[..., None]
    canvas += cover * (colour[:, None, None, :] - canvas)


def finish(rng: np.random.Generator, canvas: np.ndarray, *, noise: float = 0.03) -> np.ndarray:
    """Add Gaussian noise and round to uint8."""
    noisy = canvas + np.float32(noise) * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8)
