"""A measured number: value, standard error, how it ended and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["exact", "converged", "budget", "diverged", "failed"]
MEANING: Mapping[str, str] = {
    "exact": "no estimation is involved beyond rounding",
    "converged": "the requested standard error or residual was reached",
    "budget": "the budget ended first; standard error and residual say how far it came; allow more",
    "diverged": "a loss on the way is inf or NaN, so the value is",
    "failed": "what was asked for does not exist here; the details say why",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """A number that was measured.

    Attributes
    ----------
    measure
        Its name, such as ``average_sharpness``.
    value, unit
        ``nats``, ``%``, ``1`` (a pure number), ``alpha``, ``log alpha``; inf and NaN are values. Where the details
        (``data``) name a loss other than cross entropy, ``nats`` is left out: its unit is its own.
    se
        Standard error; NaN where the number has none. ``error_over`` says over what: ``samples``, ``directions``,
        ``probes``, ``groups``, ``rays``.
    status
        One of :data:`MEANING`.
    residual
        Of an iteration, in the unit of the value, or NaN.
    cost
        What was spent: ``forwards``, ``gradients``, ``products`` (passes over the data), ``seconds``.
    details
        Settings and everything else a reader needs, plain data.
    draws
        The single values behind the mean, where there are several.
    """

    measure: str
    value: float
    unit: str
    se: float = math.nan
    error_over: str = ""
    status: Status = "exact"
    residual: float = math.nan
    cost: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    draws: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Leave out ``nats`` of a loss that is not in nats."""
        loss = self.details.get("data", {}).get("loss", "cross entropy")
        if self.unit.startswith("nats") and loss != "cross entropy":
            object.__setattr__(self, "unit", "")

    def row(self) -> dict[str, Any]:
        """Plain columns of a table; the cost as ``cost_...``, the details left to the provenance."""
        return {
            "measure": self.measure,
            "value": self.value,
            "se": self.se,
            "error_over": self.error_over,
            "unit": self.unit,
            "status": self.status,
            "residual": self.residual,
            **{"cost_s" if name == "seconds" else f"cost_{name}": spent for name, spent in self.cost.items()},
        }

    def to_frame(self) -> pd.DataFrame:
        """One row."""
        import pandas as pd

        return pd.DataFrame([self.row()])

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>" + self.to_frame().to_html(index=False)

    def __repr__(self) -> str:
        error = "" if math.isnan(self.se) else f" ± {self.se:.2g}"
        unit = "" if self.unit in ("1", "") else f" {self.unit}"
        return f"Estimate({self.measure} = {self.value:.5g}{error}{unit}, {self.status})"
