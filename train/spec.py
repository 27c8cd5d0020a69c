"""What is trained, on what and how: a run's specification, its identity and its name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePath
from typing import Any

from train.errors import TrainError
from train.methods import get, unknown
from train.recipe import Recipe

SCHEMA = 1
"""Of the run folder and of the hash. Defaults are frozen per schema: another default needs another schema."""

PROTOCOLS = ("validation", "paper")
INPUTS = ("backbone", "unit", "imagenet")
BITS = (1, 2, 3, 4, 5, 6, 7, 8, 32)
HEAD_BITS = (1, 32)


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Everything that decides a run's numbers, and nothing else.

    Parameters
    ----------
    task, train_size, test_size, data_seed
        The task's name, how many images are split into train (80 %) and val (20 %), how many are tested on (all if
        None), and the seed of that split.
    backbone, img_size
        What ``train.backbones.create`` takes; None for the backbone's own image size.
    method, dim, bits, quantizer, scale
        How the backbone is tuned; ``dim`` is the hidden size, the rank or the subspace's dimension. Of a method without
        an adapter ``dim`` is 0.
    head_bits
        32, or 1 for a low-bit head without bias.
    recipe, seed
        How it is trained; the seed of initial values, order and dropout.
    protocol
        ``validation``: trained on train, the epoch chosen on val, test read once at the end. ``paper``: trained on
        train and val, the last epoch taken.
    inputs
        Normalisation: the backbone's own, none (``unit``, values from 0 to 1, as the paper) or ImageNet's.

    Raises
    ------
    TrainError
        For a wrong name or an impossible value.
    """

    task: str
    train_size: int = 1000
    test_size: int | None = None
    data_seed: int = 0
    backbone: str = "vit_tiny32"
    img_size: int | None = None
    method: str = "adaptformer"
    dim: int = 8
    bits: int = 32
    quantizer: str = "gaussian_l1"
    scale: float = 1.0
    head_bits: int = 32
    recipe: Recipe = field(default_factory=Recipe)
    protocol: str = "validation"
    inputs: str = "backbone"
    seed: int = 0

    def __post_init__(self) -> None:
        from quant.errors import QuantError
        from quant.quantizers import parse
        from train.tasks import names as tasks

        method = get(self.method)
        kind = self.task.partition(":")[0]
        if kind not in tasks():
            raise TrainError(unknown("task", kind, tasks()))
        for what, found, valid in (
            ("protocol", self.protocol, PROTOCOLS),
            ("inputs", self.inputs, INPUTS),
        ):
            if found not in valid:
                raise TrainError(unknown(what, found, list(valid)))
        try:
            parse(self.quantizer)
        except QuantError as error:
            raise TrainError(str(error)) from None
        for what, bits, allowed in (("bits", self.bits, BITS), ("head bits", self.head_bits, HEAD_BITS)):
            if bits not in allowed:
                raise TrainError(f"expected {what} to be one of {', '.join(map(str, allowed))}, found {bits!r}")
        lows = {"train_size": 1, "test_size": 1, "img_size": 1, "data_seed": 0, "seed": 0}
        if method.has_adapter:
            lows["dim"] = 1
        for name, low in lows.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
                raise TrainError(f"expected {name} to be a whole number from {low}, found {value!r}")
        if not 0 < self.scale < float("inf"):
            raise TrainError(f"expected scale above 0, found {self.scale!r}")
        object.__setattr__(self, "scale", float(self.scale))  # 1 and 1.0 are one run
        self._without_what_has_no_effect(method.has_adapter, method.whole)

    def _without_what_has_no_effect(self, has_adapter: bool, whole: bool) -> None:
        """Give settings that change nothing their one value, so that one training has one name.

        Raises
        ------
        TrainError
            Where someone asked for what the method cannot do.
        """
        if not has_adapter:
            if self.bits != 32:
                raise TrainError(f"{self.method} has no adapter to quantise: expected bits 32, found {self.bits}")
            if whole and self.head_bits != 32:
                raise TrainError(f"{self.method} stores whole networks: expected head bits 32, found {self.head_bits}")
            object.__setattr__(self, "dim", 0)
            object.__setattr__(self, "scale", 1.0)
        if self.bits == 32 and self.head_bits == 32:
            object.__setattr__(self, "quantizer", "gaussian_l1")

    def without_folders(self) -> dict[str, Any]:
        """As ``to_dict``, of paths the last part alone: the same data elsewhere are the same run."""
        paths = {"task": _without_folder(self.task, ":"), "backbone": _without_folder(self.backbone, "@")}
        return {**self.to_dict(), **paths}

    @property
    def hash(self) -> str:
        """Eight hex digits over what is not at its default; of a path the last part: moved data is the same run."""
        from figures.tables import key_of

        plain, default = self.without_folders(), RunSpec(task=self.task).to_dict()
        changed = {name: value for name, value in plain.items() if name == "task" or value != default[name]}
        if "recipe" in changed:
            changed["recipe"] = {k: v for k, v in plain["recipe"].items() if v != default["recipe"][k]}
        return key_of({"schema": SCHEMA, **changed})[:8]

    @property
    def name(self) -> str:
        """The run folder's name: ``<task>.<method>-<dim>.<bits>b.s<seed>.<hash8>``."""
        task = re.sub(r"[^A-Za-z0-9_-]+", "-", _without_folder(self.task, ":"))
        return f"{task}.{self.method}-{self.dim}.{self.bits}b.s{self.seed}.{self.hash}"

    @property
    def task_name(self) -> str:
        """The task without the folder that its data lie in, as tables have it."""
        return _without_folder(self.task, ":")

    @property
    def label(self) -> str:
        """The method, its size and bits as people read them, like ``AdaptFormer h8, 1 bit``."""
        method = get(self.method)
        text = method.label(self.dim)
        if method.has_adapter:
            text += f", {self.bits} bit" + ("s" if self.bits > 1 else "")
        return text if self.head_bits == 32 else f"{text}, {self.head_bits}-bit head"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "recipe": self.recipe.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunSpec:
        """The specification that ``to_dict`` wrote; what is absent has its default.

        Raises
        ------
        TrainError
            If a field is unknown, missing or has an impossible value.
        """
        valid = [f.name for f in fields(cls)]
        for name in data:
            if name not in valid:
                raise TrainError(unknown("field of a run's specification", name, valid))
        if "task" not in data:
            raise TrainError("a run's specification needs a task, found none")
        values = dict(data)
        if "recipe" in values:
            values["recipe"] = Recipe.from_dict(values["recipe"])
        return cls(**values)

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        """The specification that ``to_json`` wrote.

        Raises
        ------
        TrainError
            If the text is no JSON object or holds what ``from_dict`` refuses.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise TrainError(f"expected a run's specification as JSON, found text that is none: {error}") from None
        if not isinstance(data, dict):
            raise TrainError(f"expected a run's specification as a JSON object, found {type(data).__name__}")
        return cls.from_dict(data)


def _without_folder(name: str, mark: str) -> str:
    """``folder:/data/pets`` as ``folder:pets``, ``NAME@/data/x.pth`` as ``NAME@x.pth``; other names as they are."""
    head, found, path = name.partition(mark)
    return f"{head}{mark}{PurePath(path).name}" if found else name
