"""How long and how fast to train: optimiser, schedule, batch; and the presets by name.

The schedule is that of the low-bit paper's code (PAPER 1.5), in closed form: timm's cosine with a linear warm-up,
stepped after each epoch with that epoch's own index, so that epoch e runs at the value for e - 1 and the first value
comes twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from train.errors import TrainError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """AdamW, constant weight decay, cosine schedule by the epoch, plain cross-entropy, no augmentation.

    Parameters
    ----------
    epochs, batch_size
        An epoch is a seeded shuffle cut into whole batches; what is left over is dropped, as in the paper.
    lr
        Base of the schedule.
    lr_for
        Bases of single methods in place of ``lr``, as (method, base) pairs: what suits an adapter is too much for a
        whole network.
    warmup_epochs, warmup_lr, min_lr
        The warm-up climbs from ``warmup_lr`` towards the base, the cosine ends at ``min_lr``. The warm-up is part of
        the cosine's time, so the base itself is never reached where there is a warm-up.
    weight_decay
        On all trained tensors.
    drop_path
        Rate in the last block, growing linearly from zero in the first.
    """

    epochs: int = 100
    batch_size: int = 64
    lr: float = 1e-3
    lr_for: tuple[tuple[str, float], ...] = (("full", 1e-4),)
    warmup_epochs: int = 10
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    weight_decay: float = 1e-4
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("warmup_epochs", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise TrainError(f"recipe: expected {name} to be a whole number from {low}, found {value!r}")
        rates = {"lr": self.lr, **{f"lr of {m}": rate for m, rate in self.lr_for}}
        for name, rate in rates.items():
            if not 0 < rate <= 1e6:
                raise TrainError(f"recipe: expected {name} above 0 and at most 1e6, found {rate!r}")
        for name in ("warmup_lr", "min_lr", "weight_decay", "drop_path"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0) or (name == "drop_path" and value >= 1):
                raise TrainError(f"recipe: expected {name} to be 0 or more, found {value!r}")

    def base_lr(self, method: str = "") -> float:
        """Base of the schedule for a method: its own where it has one, else ``lr``."""
        return dict(self.lr_for).get(method, self.lr)

    def learning_rate(self, epoch: int, method: str = "") -> float:
        """Learning rate during an epoch (counted from 0): the schedule's value for ``epoch - 1``; PAPER 1.5."""
        t = max(epoch - 1, 0)
        base = self.base_lr(method)
        if t < self.warmup_epochs:
            return self.warmup_lr + t * (base - self.warmup_lr) / self.warmup_epochs
        if t >= self.epochs:
            return self.min_lr
        # min + (base - min) / 2 * (1 + cos(pi t / T))
        return self.min_lr + 0.5 * (base - self.min_lr) * (1 + math.cos(math.pi * t / self.epochs))

    def with_epochs(self, epochs: int) -> Recipe:
        """The same recipe over another number of epochs, the warm-up in proportion."""
        return replace(self, epochs=epochs, warmup_epochs=round(self.warmup_epochs * epochs / self.epochs))

    def with_lr(self, method: str, lr: float) -> Recipe:
        """The same recipe with another base for one method."""
        others = {name: rate for name, rate in self.lr_for if name != method}
        return replace(self, lr_for=tuple(sorted({**others, method: lr}.items())))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "lr_for": dict(self.lr_for)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe that ``to_dict`` wrote; what is absent has its default.

        Raises
        ------
        TrainError
            If a field is unknown or has an impossible value.
        """
        from train.methods import unknown

        valid = [f.name for f in fields(cls)]
        for name in data:
            if name not in valid:
                raise TrainError(unknown("field of a recipe", name, valid))
        values = dict(data)
        if "lr_for" in values:
            values["lr_for"] = tuple(sorted((str(m), float(rate)) for m, rate in dict(values["lr_for"]).items()))
        return cls(**values)


PRESETS: dict[str, Recipe] = {
    "paper": Recipe(),
    # for studies of many small runs: a ViT of width 192 on some hundred images of 32x32 in seconds
    "short": Recipe(
        epochs=10,
        lr=1e-2,
        lr_for=(("full", 1e-3), ("linear", 2e-2)),
        warmup_epochs=1,
        warmup_lr=1e-4,
        min_lr=1e-5,
        drop_path=0.0,
    ),
}


def preset(name: str) -> Recipe:
    """The recipe of that name.

    Raises
    ------
    TrainError
        If there is none.
    """
    from train.methods import unknown

    if name not in PRESETS:
        raise TrainError(unknown("recipe", name, list(PRESETS)))
    return PRESETS[name]
