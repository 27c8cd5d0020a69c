"""Loss landscapes of any ``nn.Module``: what is measured (objective), what moves (space), and where to (directions).

Importing the package loads no torch; the public names load their module when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "LandscapeError": "errors",
    "Objective": "objective",
    "Evaluation": "evaluation",
    "Policy": "space",
    "Space": "space",
    "Direction": "directions",
    "between": "directions",
    "cosine": "directions",
    "draw": "directions",
    "from_tensors": "directions",
    "orthogonal_pair": "directions",
    "Curve": "surface",
    "Surface": "surface",
    "grid": "surface",
    "line": "surface",
    "plane": "surface",
    "reach": "radius",
    "rise_at": "radius",
    "Connection": "connectivity",
    "bezier_curve": "bezier",
    "interpolate": "connectivity",
    "plane_through": "connectivity",
    "Trajectory": "trajectory",
    "principal": "trajectory",
    "project": "trajectory",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"landscape.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'landscape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
