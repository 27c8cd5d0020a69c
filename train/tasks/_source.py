"""What a task file hands over, and how it is split: stratified, seeded, in VTAB-1k's manner.

VTAB-1k (Zhai et al. 2019): 1,000 labelled images in all, 800 to train on and 200 to choose settings with; the test set
is whole. A part that the data brings (a test folder, a validation folder) is kept; what is missing is split off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from train.errors import TrainError

VAL_SHARE = 0.2
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled images before the split; nothing is decoded yet.

    ``labels`` has an array (N,) for ``"train"`` (the pool of an unsplit source as well) and for the parts that the data
    brings, ``"val"`` and ``"test"``. ``take(part, rows)`` decodes rows of a part to (n, H, W, 3) uint8.
    """

    name: str
    classes: tuple[str, ...]
    labels: Mapping[str, np.ndarray]
    take: Callable[[str, np.ndarray], np.ndarray]


def split(source: Source, *, train_size: int, test_size: int | None, seed: int) -> dict[str, tuple[str, np.ndarray]]:
    """Choose, for each of train, val and test, a part of the source and rows of it, in a random order.

    Raises
    ------
    TrainError
        More images asked for than are there, or too few to train on every class.
    """
    pool = source.labels["train"]
    classes = len(source.classes)
    if classes < 2:
        raise TrainError(
            f"{source.name}: a task needs at least two classes, found {classes}: {', '.join(source.classes)}"
        )
    n_val = round(VAL_SHARE * train_size)
    given_val = source.labels.get("val")
    if given_val is not None:
        n_val = min(n_val, len(given_val))
    n_train = train_size - n_val
    if n_train < classes:
        raise TrainError(
            f"{source.name}: train_size={train_size} leaves {n_train} images to train on, there are {classes} classes"
        )
    wanted = n_train if given_val is not None else train_size
    if wanted > len(pool):
        raise TrainError(
            f"{source.name}: train_size={train_size} needs {wanted} training images, {len(pool)} are there; "
            "take a smaller train_size"
        )
    rng = np.random.default_rng([seed, 0x5917])
    chosen = stratified(pool, wanted, rng, minimum=1)
    if given_val is None:
        inner = stratified(pool[chosen], n_train, rng, minimum=1)
        train = ("train", chosen[inner])
        val = ("train", np.delete(chosen, inner))
    else:
        train = ("train", chosen)
        val = ("val", stratified(given_val, n_val, rng))
    if "test" in source.labels:
        part, rest = "test", np.arange(len(source.labels["test"]))
    else:
        part, rest = "train", np.setdiff1d(np.arange(len(pool)), chosen)
    if len(rest) == 0:
        raise TrainError(f"{source.name}: train_size={train_size} takes every image and leaves none to test on")
    if test_size is not None and not 0 < test_size <= len(rest):
        raise TrainError(f"{source.name}: test_size={test_size}, expected 1 to {len(rest)}, the test images there are")
    test = rest[stratified(source.labels[part][rest], test_size or len(rest), rng)]
    # One more shuffle: the first k images of a split are then a sample of it, not its first class.
    rows = {"train": train, "val": val, "test": (part, test)}
    return {name: (where, rng.permutation(rows_of)) for name, (where, rows_of) in rows.items()}


def stratified(labels: np.ndarray, size: int, rng: np.random.Generator, *, minimum: int = 0) -> np.ndarray:
    """Draw ``size`` positions whose class shares follow those of ``labels``, each class at least ``minimum`` times.

    A class's count differs from its quota by less than one image, unless ``minimum`` lifts a class: what that takes
    comes from the classes that are furthest above theirs.
    """
    classes, inverse, available = np.unique(labels, return_inverse=True, return_counts=True)
    if not len(classes):
        return np.empty(0, dtype=np.int64)
    quota = size * available / len(labels)
    count = np.maximum(np.floor(quota).astype(np.int64), minimum)
    while count.sum() > size:
        count[np.argmax(np.where(count > minimum, count - quota, -np.inf))] -= 1
    while count.sum() < size:
        count[np.argmax(np.where(count < available, quota - count, -np.inf))] += 1
    drawn = [rng.permutation(np.flatnonzero(inverse == c))[:k] for c, k in enumerate(count)]
    return np.concatenate(drawn)
