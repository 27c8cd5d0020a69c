"""What every curvature operator is: a symmetric linear map on flat vectors, open inside ``with``, that counts its cost.

A flat vector holds all entries of a space's tensors one after another, in the order of ``space.names``, each in
row-major order. It is float64 where a parameter is, float32 otherwise. P parameters, B vectors.
"""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from landscape.directions import Direction, from_tensors
from landscape.errors import LandscapeError
from landscape.objective import Objective
from landscape.provenance import of_objective, of_space
from landscape.space import Space


class Operator(ABC):
    """A symmetric linear map on vectors of P entries.

    Parameters
    ----------
    size
        P.
    dtype, device
        Of the vectors that go in and come out.

    Attributes
    ----------
    cost
        Spent so far: ``forwards``, ``gradients`` and ``products`` as passes over the data, ``seconds``.
    """

    name = "operator"

    def __init__(self, size: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> None:
        self.size, self.dtype, self.device = size, dtype, torch.device(device)
        self.cost: dict[str, float] = {"forwards": 0.0, "gradients": 0.0, "products": 0.0, "seconds": 0.0}
        self._depth = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self._depth == 0:
            with self._timed(), ExitStack() as stack:
                self._open(stack)
                self._stack = stack.pop_all()
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._stack.close()

    def product(self, vector: Tensor) -> Tensor:
        """A v for one vector (P,)."""
        return self.products(vector[None])[0]

    def products(self, vectors: Tensor) -> Tensor:
        """A v for each row of (B, P). Where graphs are not kept, a pass over the data serves all rows.

        Raises
        ------
        LandscapeError
            Outside ``with``, or for vectors of another length.
        """
        if self._depth == 0:
            raise LandscapeError(f"expected products inside `with` the {self.name} operator, which puts all back")
        if vectors.ndim != 2 or vectors.shape[1] != self.size:
            raise LandscapeError(f"expected vectors (B, {self.size}), found {tuple(vectors.shape)}")
        with self._timed(), torch.enable_grad():
            found = self._products(vectors.detach().to(self.device, self.dtype))
        self.cost["products"] += len(vectors)
        return found

    def spent(self, before: Mapping[str, float]) -> dict[str, float]:
        """The cost since ``before``, a copy of ``cost``."""
        return {name: value - before[name] for name, value in self.cost.items()}

    def describe(self) -> dict[str, Any]:
        """What it is, as plain data for the details of an estimate."""
        return {"operator": self.name, "size": self.size, "dtype": str(self.dtype).removeprefix("torch.")}

    def _open(self, stack: ExitStack) -> None:  # noqa: B027  (an operator may need nothing)
        """Enter what the products need on the stack, which is closed with the operator."""

    @abstractmethod
    def _products(self, vectors: Tensor) -> Tensor:
        """A v for each row of (B, P), detached."""

    def _timed(self) -> _Timed:
        return _Timed(self.cost)


class ModelOperator(Operator):
    """An operator on the tensors of a space: curvature of an objective at the space's centre.

    Parameters
    ----------
    objective, space
        On one model.
    surrogate
        Whether to go on in a space whose latent weights are quantised again: derivatives then pass through a
        straight-through estimator and are no curvature of the loss (NUMERICS 13).

    Raises
    ------
    LandscapeError
        If the objective is on another model, or the space is ``requantised`` and no surrogate was asked for.
    """

    def __init__(self, objective: Objective, space: Space, *, surrogate: bool = False) -> None:
        if objective.model is not space.model:
            raise LandscapeError("expected the objective on the model of the space, found another model")
        if space.weights == "requantised" and not surrogate:
            raise LandscapeError(
                "expected weights='values', found 'requantised': its loss is a staircase and a straight-through "
                "derivative is no curvature of it; ask for surrogate=True to have that all the same"
            )
        parameters = list(space.parameters.values())
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
        super().__init__(sum(p.numel() for p in parameters), dtype, parameters[0].device)
        self.objective, self.space = objective, space
        self.surrogate = space.weights == "requantised"
        self._sizes = [p.numel() for p in parameters]
        self._warned = False

    def flatten(self, tensors: Mapping[str, Tensor] | Direction) -> Tensor:
        """One vector (P,) of tensors by name; those left out are zero."""
        named = tensors.tensors if isinstance(tensors, Direction) else tensors
        return self._joined([named.get(name) for name in self.space.names])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Views into a vector (P,) in the shapes of the parameters, by name."""
        parts = vector.split(self._sizes)
        shapes = (p.shape for p in self.space.parameters.values())
        return {name: x.view(shape) for name, x, shape in zip(self.space.names, parts, shapes, strict=True)}

    def direction(self, vector: Tensor, label: str, *, norm: float | None = None) -> Direction:
        """A vector (P,), such as an eigenvector, as a direction of the space."""
        return from_tensors(self.space, vector, label, norm=norm)

    def describe(self) -> dict[str, Any]:
        """What NUMERICS 28 asks a table to say, as plain data."""
        return {
            **super().describe(),
            **of_space(self.space),
            "surrogate": self.surrogate,
            "data": of_objective(self.objective),
        }

    def _open(self, stack: ExitStack) -> None:
        stack.enter_context(self.space)
        if not self.objective.checked:
            self.cost["forwards"] += 2
            self.objective.check_deterministic()
        if not self._warned:
            self._warned = _warn_of_nonfinite(self.space.model)

    def _parts(self, vector: Tensor) -> list[Tensor]:
        # In the parameters' own dtypes and on their devices, as autograd wants them.
        parameters = self.space.parameters.values()
        return [x.to(p) for x, p in zip(self.unflatten(vector).values(), parameters, strict=True)]

    def _joined(self, tensors: Sequence[Tensor | None]) -> Tensor:
        parts = [
            torch.zeros(size, dtype=self.dtype, device=self.device)
            if t is None
            else t.detach().to_dense().reshape(-1).to(self.device, self.dtype)
            for t, size in zip(tensors, self._sizes, strict=True)
        ]
        return torch.cat(parts)


def _warn_of_nonfinite(model: nn.Module) -> bool:
    """Whether weights of a model are inf or NaN; a warning says how many."""
    weights = list(model.parameters())
    broken = sum(int((~w.isfinite()).sum()) for w in weights)
    if broken:
        total = sum(w.numel() for w in weights)
        warnings.warn(
            f"{broken:,} of the model's {total:,} weights are inf or NaN: curvature at them is no number",
            RuntimeWarning,
            stacklevel=4,
        )
    return broken > 0


class _Timed:
    """Adds the seconds of a block to a cost."""

    def __init__(self, cost: dict[str, float]) -> None:
        self._cost = cost

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._cost["seconds"] += time.perf_counter() - self._started
