"""How many rows of data a differentiable pass may take: autograd keeps what every layer saves until it is done.

The bound is a fixed number of bytes on a processor, not what happens to be free there: the rows of a batch move the
last bits of a result, and two runs of one command should agree in them (NUMERICS 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.guard import strided
from landscape.objective import Objective

PROCESSOR_BYTES = 4 << 30


def budget(device: torch.device) -> float:
    """Bytes for graphs: 4 GiB on a processor, half of what is free on another device."""
    return torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else PROCESSOR_BYTES


@dataclass(frozen=True)
class GraphSize:
    """Bytes that a graph saves: those that do not depend on its rows, and those of each row."""

    fixed: float
    per_row: float

    @classmethod
    def measured(cls, build: Callable[[slice], Any], objective: Objective) -> GraphSize:
        """From graphs of one row and of two; ``build(rows)`` returns what keeps a graph alive.

        Some models take no single row (a squeeze, a variance over the batch): of two rows and of three then. What
        ``build`` raises for these too is raised.
        """
        model = objective.model
        there = [*model.parameters(), *model.buffers(), *objective.inputs.values(), objective.targets]

        def saved(rows: int) -> float:
            return _saved_bytes(lambda: build(slice(0, rows)), there)

        fewest, few = 1, _or_none(lambda: saved(1))
        if few is None:
            fewest, few = min(2, objective.n), saved(min(2, objective.n))
        if objective.n == fewest:
            return cls(0.0, few / fewest)
        per_row = max(saved(fewest + 1) - few, 0.0)
        return cls(max(few - fewest * per_row, 0.0), per_row)

    def of(self, rows: int) -> float:
        """Bytes of a graph of so many rows."""
        return self.fixed + self.per_row * rows

    def rows(self, most: int, limit: float) -> int:
        """At most ``most`` rows, fewer where their graph would take more than ``limit`` bytes; at least one."""
        return most if self.of(most) <= limit else max(1, int((limit - self.fixed) // self.per_row))


def _or_none(measure: Callable[[], float]) -> float | None:
    try:
        return measure()
    except (RuntimeError, ValueError, IndexError, LandscapeError):
        return None


def _saved_bytes(build: Callable[[], Any], there: Sequence[Tensor]) -> float:
    """Memory of the tensors that the graphs of ``build()`` save, each once, those that are there anyway left out."""
    own = {part.untyped_storage().data_ptr() for t in there for part in strided(t)}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        for part in strided(tensor):
            storage = part.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = build()
    del graph
    return float(sum(seen.values()))
