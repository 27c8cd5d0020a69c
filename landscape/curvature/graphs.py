"""Autograd graphs of the batches of an objective, kept between products while they fit into memory.

The forward pass and the first derivative are the same for every product at fixed weights: kept, they are paid once
(measured on a small vision transformer on a processor: 6 bare forward passes a product instead of 10).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch

from landscape.memory import GraphSize, budget
from landscape.objective import Objective, rows_of

G = TypeVar("G")
# Of the memory for graphs, what one may take: a product holds about two times as much again beside it while it runs.
SHARE = 1 / 4


class Graphs(Generic[G]):
    """One graph a batch, built by ``build(rows)`` and kept where memory allows; the others are built for each pass.

    Parameters
    ----------
    objective
        Whose rows are batched.
    build
        Makes a graph; what it returns holds all that keeps the graph alive.
    batch_size
        Rows a graph; None takes the objective's, at most 64 on a processor, and fewer where one would take 1 GiB there
        or an eighth of what is free on another device.
    keep_bytes
        Memory for kept graphs; None takes 4 GiB on a processor, half of what is free on another device; 0 keeps none.

    Attributes
    ----------
    built
        Passes over the data that building took so far.
    kept
        Share of the data whose graphs are kept.
    """

    def __init__(
        self, objective: Objective, build: Callable[[slice], G], batch_size: int | None, keep_bytes: int | None
    ) -> None:
        self.objective, self.build = objective, build
        on_processor = objective.device.type == "cpu"
        largest = min(objective.batch_size, rows_of(objective.device)) if on_processor else objective.batch_size
        self.batch_size = min(batch_size or largest, objective.n)
        self.built = 0.0
        self._given = batch_size is not None
        self._budget = float(budget(objective.device) if keep_bytes is None else keep_bytes)
        self._used = 0.0
        self._kept: dict[int, G] = {}
        self._weights: tuple[int, ...] = ()
        self._size: GraphSize | None = None

    def __iter__(self) -> Iterator[G]:
        """Go through the graphs of the batches, in order; one that is not kept dies when the next is asked for.

        Yields
        ------
        G
            What ``build`` returned for a batch's rows.
        """
        if (weights := self._versions()) != self._weights:  # written since, as a surface drawn in between does
            self.clear()
            self._weights = weights
        if self._size is None:
            self._size = GraphSize.measured(self._made, self.objective)
            if not self._given:
                self.batch_size = self._size.rows(self.batch_size, SHARE * budget(self.objective.device))
        n, size = self.objective.n, self.batch_size
        for start in range(0, n, size):
            rows = slice(start, min(start + size, n))
            if start in self._kept:
                yield self._kept[start]
                continue
            graph = self._made(rows)
            if self._fits(self._size.of(rows.stop - rows.start)):
                self._kept[start] = graph
            yield graph
            del graph

    @property
    def kept(self) -> float:
        """Share of the data whose graphs are kept."""
        return min(len(self._kept) * self.batch_size / self.objective.n, 1.0)

    def clear(self) -> None:
        """Let go of every graph."""
        self._kept.clear()
        self._used = 0.0

    def relieve(self, error: RuntimeError) -> bool:
        """After an error: whether memory ran out and there is something to give up, which then is given up."""
        if not (isinstance(error, torch.OutOfMemoryError) or "memory" in str(error).lower()):
            return False
        if self._kept:
            what = "graphs are no longer kept"
        elif self.batch_size > 1:
            self.batch_size = (self.batch_size + 1) // 2
            what = f"batch size of the products halved to {self.batch_size}"
        else:
            return False
        self.clear()
        self._budget = 0.0
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(f"out of memory: {what}", RuntimeWarning, stacklevel=4)
        return True

    def _versions(self) -> tuple[int, ...]:
        # How often each tensor was written in place: autograd goes back through none that was since its graph was made.
        model = self.objective.model
        return tuple(t._version for t in (*model.parameters(), *model.buffers()))

    def _made(self, rows: slice) -> G:
        graph = self.build(rows)
        self.built += (rows.stop - rows.start) / self.objective.n
        return graph

    def _fits(self, size: float) -> bool:
        if self._used >= self._budget:
            return False
        self._used += size
        return self._used <= self._budget
