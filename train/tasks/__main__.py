"""Look at a task before training on it: ``python -m train.tasks TASK``.

Prints what a model would be trained on (counts, classes, fingerprint, pixels, transform) and writes a contact sheet.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro


def main(
    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK")],
    *,
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    backbone: str = "vit_tiny32",
    train_size: int = 1000,
    test_size: int | None = None,
    size: int | None = None,
    data_seed: int = 0,
    json: bool = False,
) -> None:
    """Print a task's splits, classes, fingerprint, pixels and transform; write a contact sheet.

    Parameters
    ----------
    task
        digits, counting, orientation, folder:PATH (class folders or a .tar) or npz:PATH
    out
        the contact sheet; ./TASK.png if left out
    backbone
        whose input size and normalisation the transform has
    train_size
        labelled images: 80% to train on, 20% to validate
    test_size
        cut the test set to so many images
    size
        side in pixels to decode images at; for folder:PATH the backbone's if left out
    data_seed
        seed of the split, and of generated images
    json
        print the images per class and split as JSON records
    """
    from figures.command import emit
    from train.backbones import describe
    from train.tasks import SPLITS, load
    from train.tasks._sheet import contact_sheet

    if size is None and task.startswith("folder:"):
        size = describe(backbone).img_size
    loaded = load(task, train_size=train_size, data_seed=data_seed, size=size, test_size=test_size)
    info = describe(backbone)
    mean, std = ("(" + ", ".join(f"{v:.4f}" for v in values) + ")" for values in loaded.moments())
    counts = loaded.counts
    lines = {
        "task": f"{loaded.name}, {loaded.size}x{loaded.size}, data seed {data_seed}",
        "splits": ", ".join(f"{split} {counts[split]}" for split in SPLITS),
        "classes": f"{len(loaded.classes)}: {', '.join(loaded.classes)}",
        "fingerprint": loaded.fingerprint,
        "mean": f"{mean} of the training pixels in [0, 1]",
        "deviation": std,
        "transform": f"{info.transform().describe()} (for {info.name})",
    }
    sheet = out or Path(f"{loaded.name}.png")
    contact_sheet(loaded).save(sheet, format="PNG")
    lines["sheet"] = str(sheet)
    report = sys.stderr if json else sys.stdout
    for key, text in lines.items():
        print(f"{key:12}{text}", file=report)
    if json:
        emit(loaded.to_frame().reset_index(), json=True)


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m train.tasks", description="Print what a task holds and write a contact sheet of it.")
