"""Which blocks are sharp: the trace of each diagonal block of a curvature operator, all from the same products."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from landscape.curvature.basis import Floats, random_vector
from landscape.curvature.operator import ModelOperator
from landscape.curvature.trace import LEAST
from landscape.errors import LandscapeError
from landscape.estimate import Estimate, Status
from landscape.sharpness.per_layer import block_of

if TYPE_CHECKING:
    import pandas as pd

_TOGETHER = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """Trace of each block, the sharpest first.

    Attributes
    ----------
    blocks
        Name of the block -> its trace; the details have its entries.
    whole
        Trace of the whole operator from the same probes, the sum of the blocks'.
    """

    blocks: Mapping[str, Estimate]
    whole: Estimate

    def to_frame(self) -> pd.DataFrame:
        """One row a block, ``(all)`` last: trace with its error, entries, and the mean curvature of an entry."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "block": name,
                    "trace_nats": e.value,
                    "trace_se_nats": e.se,
                    "share": e.value / self.whole.value if self.whole.value else math.nan,
                    "entries": e.details["entries"],
                    "mean_curvature_nats": e.value / e.details["entries"],
                    "status": e.status,
                }
                for name, e in {**self.blocks, "(all)": self.whole}.items()
            ]
        )

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>" + self.to_frame().to_html(index=False)

    def __repr__(self) -> str:
        first = next(iter(self.blocks))
        return f"Blocks({len(self.blocks)} blocks, sharpest {first!r}: {self.blocks[first]})"


def block_traces(
    operator: ModelOperator,
    *,
    block: Callable[[str], str] = block_of,
    tolerance: float = 0.05,
    max_products: int = 100,
    seed: int = 0,
) -> Blocks:
    """Trace of every diagonal block, by Hutchinson's estimate with one set of products for all.

    Parameters
    ----------
    operator
        Opened here where it is not yet.
    block
        Name of a tensor -> name of its block; default: its module's path up to the first number. The identity
        ``str`` gives a block a tensor.
    tolerance
        Stops when every block's standard error is below this share of the sum of the blocks' magnitudes.
    max_products, seed
        As for :func:`landscape.curvature.trace.hutchinson`.

    Raises
    ------
    LandscapeError
        For a tolerance that is not positive, or a budget of less than 8.
    """
    if max_products < LEAST or not (math.isfinite(tolerance) and tolerance > 0):
        raise LandscapeError(
            f"expected max_products of at least {LEAST} and a positive tolerance, found {max_products} and {tolerance}"
        )
    names = [block(name) for name in operator.space.names]
    found = list(dict.fromkeys(names))
    places = torch.tensor([found.index(name) for name in names])
    entries = [p.numel() for p in operator.space.parameters.values()]
    sums: list[Floats] = []
    before = dict(operator.cost)
    with operator, torch.no_grad():
        while len(sums) < max_products and not (len(sums) >= LEAST and _reached(np.stack(sums), tolerance)):
            indices = range(len(sums), min(len(sums) + _TOGETHER, max_products))
            z = torch.stack([random_vector(operator, seed, index, signs=True) for index in indices])
            # E z z' = I, so that the sum over a block of z * (A z) has the block's trace as its mean
            for product in z.mul_(operator.products(z)):
                parts = torch.stack([part.sum(dtype=torch.float64) for part in product.cpu().split(entries)])
                sums.append(torch.zeros(len(found), dtype=torch.float64).index_add_(0, places, parts).numpy())
    samples = np.stack(sums)
    state: Status = "converged" if _reached(samples, tolerance) else "budget"
    sizes = torch.zeros(len(found), dtype=torch.long).index_add_(0, places, torch.tensor(entries)).tolist()
    shared = {
        **operator.describe(), "method": "hutchinson", "probes": len(samples), "tolerance": tolerance, "seed": seed
    }  # fmt: skip
    cost = operator.spent(before)

    def estimate(measure: str, draws: Floats, size: int) -> Estimate:
        value = float(draws.mean())
        return Estimate(
            measure=measure,
            value=value,
            unit="nats",
            se=float(_errors(draws[:, None])[0]) if math.isfinite(value) else math.nan,
            error_over="probes",
            status=state if math.isfinite(value) else "diverged",
            cost=cost,
            details={**shared, "entries": size},
            draws=tuple(draws.tolist()),
        )

    each = {name: estimate(f"{operator.name}_block_trace", samples[:, i], sizes[i]) for i, name in enumerate(found)}
    return Blocks(
        blocks=dict(sorted(each.items(), key=lambda item: -item[1].value)),
        whole=estimate(f"{operator.name}_trace", samples.sum(axis=1), operator.size),
    )


def _errors(samples: Floats) -> Floats:
    return samples.std(axis=0, ddof=1) / math.sqrt(len(samples))


def _reached(samples: Floats, tolerance: float) -> bool:
    total = np.abs(samples.mean(axis=0)).sum()
    return not math.isfinite(total) or bool((_errors(samples) <= tolerance * total).all())
