"""Curvature: products with a Hessian, a Gauss-Newton or a Fisher matrix, and what Krylov methods read from them.

Operators (``Hessian``, ``CentralDifference``, ``GaussNewton``, ``Fisher``) multiply flat vectors inside ``with``;
``top_eigenvalues``, ``hutchinson``, ``hutch_pp``, ``xtrace``, ``spectral_density``, ``along`` and ``block_traces`` take
any of them. Importing the
package loads no torch; the public names load their module when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Operator": "operator",
    "ModelOperator": "operator",
    "Hessian": "hessian",
    "CentralDifference": "difference",
    "GaussNewton": "gauss_newton",
    "Fisher": "gauss_newton",
    "Eigen": "eigen",
    "top_eigenvalues": "eigen",
    "hutchinson": "trace",
    "hutch_pp": "trace",
    "xtrace": "leave_one_out",
    "Density": "density",
    "spectral_density": "density",
    "along": "directional",
    "Blocks": "blocks",
    "block_traces": "blocks",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"landscape.curvature.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'landscape.curvature' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
