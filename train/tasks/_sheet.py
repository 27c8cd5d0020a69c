"""A contact sheet: rows are classes, columns are images of the training split, drawn with Pillow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

    from train.tasks import Task

COLUMNS = 12
MOST_CLASSES = 24
SIDE = 64
GAP = 2
LABEL_WIDTH = 120
CHARACTERS = 18


def contact_sheet(task: Task) -> Image.Image:
    """Draw up to 12 training images of each class; of more than 24 classes, 24 evenly spaced ones."""
    from PIL import Image, ImageDraw

    n = len(task.classes)
    shown = np.unique(np.linspace(0, n - 1, min(n, MOST_CLASSES)).round().astype(int))
    labels, images = task.labels("train"), task.images("train")
    step = SIDE + GAP
    sheet = Image.new("RGB", (LABEL_WIDTH + COLUMNS * step, len(shown) * step + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, label in enumerate(shown):
        top = GAP + row * step
        pen.text((4, top + SIDE // 2 - 6), task.classes[label][:CHARACTERS], fill="black")
        for column, i in enumerate(np.flatnonzero(labels == label)[:COLUMNS]):
            tile = Image.fromarray(images[i])
            how = Image.Resampling.NEAREST if task.size < SIDE else Image.Resampling.LANCZOS
            sheet.paste(tile.resize((SIDE, SIDE), how), (LABEL_WIDTH + column * step, top))
    return sheet
