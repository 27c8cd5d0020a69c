"""Tasks, backbones, methods, recipes and runs: from images and a pretrained network to a run folder.

Importing this package loads nothing heavy; a public name loads its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.errors import TrainError
    from train.loop import fit
    from train.methods import Method
    from train.recipe import PRESETS, Recipe
    from train.run import Run
    from train.spec import RunSpec
    from train.tasks import Task, Transform

__all__ = ["PRESETS", "Method", "Recipe", "Run", "RunSpec", "Task", "TrainError", "Transform", "fit"]

_MODULES = {
    "Method": "methods",
    "PRESETS": "recipe",
    "Recipe": "recipe",
    "Run": "run",
    "RunSpec": "spec",
    "Task": "tasks",
    "TrainError": "errors",
    "Transform": "tasks",
    "fit": "loop",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
