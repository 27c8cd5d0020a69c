"""Which tensors of a model move, and how a vector becomes weights.

Every point is written from saved copies of the weights, never from the last point (NUMERICS 2), straight into the
model's own parameters: no second model, no walk. ``with space:`` puts everything back bit for bit (NUMERICS 3).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor, nn

from landscape.batchnorm import statistics
from landscape.errors import LandscapeError, nearest
from landscape.guard import preserved, same_bits

if TYPE_CHECKING:
    import pandas as pd

    from landscape.directions import Direction

Role = Literal["matrix", "token", "vector"]
BatchNorm = Literal["freeze", "recalibrate", "perturb"]
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ROWS = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd)
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
_TOKEN = re.compile(r"token|prompt|pos_emb|position|class_emb|cls_emb|dist_emb")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What happens to tensors without rows, and how rows are normalised (NUMERICS 7).

    Attributes
    ----------
    bias_and_norm
        Biases, norm gains, scales: ``zero`` holds them still, ``vector`` treats each as one filter, ``element`` scales
        each entry's noise by its own weight.
    tokens
        Class, position and prompt tokens: each token (a row of the last axis) has its own norm.
    matrices
        ``filter``: each output row or filter has its own norm (Li et al. 2018); ``layer``: one norm a tensor.
    """

    bias_and_norm: Literal["zero", "vector", "element"] = "zero"
    tokens: Literal["token"] = "token"
    matrices: Literal["filter", "layer"] = "filter"

    def __post_init__(self) -> None:
        allowed = {
            "bias_and_norm": ("zero", "vector", "element"),
            "tokens": ("token",),
            "matrices": ("filter", "layer"),
        }
        for field, values in allowed.items():
            value = getattr(self, field)
            if value not in values:
                raise LandscapeError(
                    f"expected {field} to be one of {', '.join(values)}, found {value!r}{nearest(value, values)}"
                )


class Space:
    """The tensors of a model that may move, with saved copies of them.

    Parameters
    ----------
    model
        Any module; its parameters may be frozen, shared, 0-d, or half precision (moved in float32, then rounded once).
    names
        Names as in ``model.named_parameters(remove_duplicate=False)``. Shared ones move once, under their first name.
    kind
        Label of the space in tables: ``factors``, ``merged`` or ``full`` (NUMERICS 11).
    policy
        How directions in this space are normalised.
    head
        Label of the tables' column of that name: whether the classification head is among the tensors.
    weights
        What a quantised model's tensors are (NUMERICS 13): ``values``, dequantised and moving freely, or
        ``requantised``, latent and quantised again after every move, so that the loss is a staircase.

    Raises
    ------
    LandscapeError
        If there is no such tensor, none at all, or one is no floating point parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        *,
        kind: str = "factors",
        policy: Policy = Policy(),
        head: bool = False,
        weights: Literal["values", "requantised"] = "values",
        batch_norm: BatchNorm = "freeze",
    ) -> None:
        self.model, self.kind, self.policy, self.head, self.weights = model, kind, policy, head, weights
        self.batch_norm = batch_norm
        self.parameters: dict[str, Tensor] = {**_resolve(model, names)}
        if batch_norm == "perturb":
            self.parameters |= statistics(model)
            if policy.bias_and_norm == "zero":
                raise LandscapeError(
                    "running statistics move as vectors do, which the policy holds still: batch_norm 'perturb' needs "
                    "bias_and_norm='vector' or 'element'"
                )
        self.names: tuple[str, ...] = tuple(self.parameters)
        self.roles: dict[str, Role] = {name: _role(model, name, p) for name, p in self.parameters.items()}
        self.centre: dict[str, Tensor] = {name: p.detach().clone() for name, p in self.parameters.items()}
        # Half precision moves in a float32 scratch tensor and is rounded once when it is written to the model.
        self._scratch = {n: torch.empty_like(c, dtype=torch.float32) for n, c in self.centre.items() if half(c)}
        self._base = {name: c.float() if half(c) else c for name, c in self.centre.items()}
        self._depth = 0
        self._displaced: frozenset[str] = frozenset()
        self._stack = ExitStack()

    def __getstate__(self) -> dict[str, object]:
        """Without what belongs to a ``with`` block: it is sent to workers with the model, and entered there."""
        return {**self.__dict__, "_stack": None, "_depth": 0, "_displaced": frozenset()}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _stack=ExitStack())

    @property
    def k(self) -> int:
        """Number of parameters that the policy lets move."""
        return sum(p.numel() for name, p in self.parameters.items() if not self.held(name))

    @property
    def total(self) -> int:
        """Number of parameters of the whole model, shared ones counted once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def share(self) -> float:
        """``k`` over ``total``."""
        return self.k / self.total

    def held(self, name: str) -> bool:
        """Whether the policy holds this tensor still."""
        return self.roles[name] == "vector" and self.policy.bias_and_norm == "zero"

    def __enter__(self) -> Self:
        for name, p in self.parameters.items():
            if not same_bits(p.detach(), self.centre[name]):
                raise LandscapeError(
                    f"{name!r} is not as it was when this space was made; move back to 0, or make a new Space"
                )
        if self._depth == 0:
            self._stack.enter_context(preserved(self.model))
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        try:
            with torch.no_grad():
                torch._foreach_copy_(list(self.parameters.values()), list(self.centre.values()))
            self._displaced = frozenset()
        finally:
            if self._depth == 0:
                self._stack.close()

    def move(self, directions: Direction | Sequence[Direction], coefficients: float | Sequence[float]) -> None:
        """Write centre + sum of coefficient * direction into the model; all coefficients 0 gives the exact centre.

        Raises
        ------
        LandscapeError
            Outside ``with space:``, where nothing would put the weights back, or for a direction of another space.
        """
        if self._depth == 0:
            raise LandscapeError("expected move() inside `with space:`, which puts the weights back")
        steps = [(d, c) for d, c in _pairs(directions, coefficients) if c != 0]
        for direction, _ in steps:
            self._check(direction)
        moved = frozenset[str]().union(*(direction.moved for direction, _ in steps))
        touched = [name for name in self.names if name in moved or name in self._displaced]
        self._displaced = moved
        if not touched:
            return
        work: dict[str, Tensor] = {**self.parameters, **self._scratch}
        with torch.no_grad():  # through the parameters themselves: caches keyed on their version notice
            written: set[str] = set()
            for direction, c in steps:
                for name in direction.moved:
                    # The first step reads the saved weights and writes the model's: one pass, not a copy and a sum.
                    start = work[name] if name in written else self._base[name]
                    torch.add(start, direction.tensors[name], alpha=c, out=work[name])
                written |= direction.moved
            rest = [n for n in touched if n not in written]
            if rest:
                torch._foreach_copy_([work[n] for n in rest], [self._base[n] for n in rest])
            rounded = [n for n in touched if n in self._scratch]
            if rounded:
                torch._foreach_copy_([self.parameters[n] for n in rounded], [self._scratch[n] for n in rounded])

    def effective_radius(
        self,
        directions: Direction | Sequence[Direction],
        coefficients: float | Sequence[float],
        gram: Sequence[Sequence[float]] | None = None,
    ) -> float:
        """||move||_F over ||the tensors that move||_F (NUMERICS 12); inf where these are all zero.

        ``gram``: the inner products of the directions, where the caller has them for many points.
        """
        steps = _pairs(directions, coefficients)
        products = gram or [[d.dot(e) for e, _ in steps] for d, _ in steps]
        squared = sum(a * b * products[i][j] for i, (_, a) in enumerate(steps) for j, (_, b) in enumerate(steps))
        length, norm = max(squared, 0.0) ** 0.5, self.norm(frozenset[str]().union(*(d.moved for d, a in steps if a)))
        return length / norm if norm else (float("inf") if length else 0.0)

    def norm(self, names: frozenset[str] | None = None) -> float:
        """Frobenius norm of the saved weights, of all tensors or of those named."""
        return sum(n**2 for name, n in self._norms.items() if names is None or name in names) ** 0.5

    @cached_property
    def _norms(self) -> dict[str, float]:
        return {name: norm_of(centre) for name, centre in self.centre.items()}

    def check_tied(self) -> None:
        """Refuse parameters of the model on the memory of one that moves: a derivative sees one of them alone.

        Raises
        ------
        LandscapeError
            With their names.
        """
        mine = {_memory(p): (name, p) for name, p in self.parameters.items()}
        for other, p in self.model.named_parameters():
            name, own = mine.get(_memory(p), (other, p))
            if own is not p:
                raise LandscapeError(
                    f"{name!r} and {other!r} are two parameters on one memory, which has no one gradient; tie them as "
                    "one: a.weight = b.weight"
                )

    def to_frame(self) -> pd.DataFrame:
        """One row a tensor: name, shape, role, whether the policy holds it, entries, norm."""
        import pandas as pd

        rows = [
            {"tensor": name, "shape": tuple(c.shape), "role": self.roles[name], "held": self.held(name),
             "entries": c.numel(), "norm": self._norms[name]}
            for name, c in self.centre.items()
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>" + self.to_frame().to_html(index=False, max_rows=20)

    def __repr__(self) -> str:
        return f"Space({self.kind}: {len(self.names)} tensors, k={self.k:,}, {self.share:.2%} of the model)"

    def _check(self, direction: Direction) -> None:
        for name, tensor in direction.tensors.items():
            if name not in self.parameters or tensor.shape != self.parameters[name].shape:
                raise LandscapeError(f"the direction's {name!r} {tuple(tensor.shape)} is no tensor of this space")


def _pairs(
    directions: Direction | Sequence[Direction], coefficients: float | Sequence[float]
) -> list[tuple[Direction, float]]:
    many = list(directions) if isinstance(directions, Sequence) else [directions]
    numbers = [float(c) for c in coefficients] if isinstance(coefficients, Sequence) else [float(coefficients)]
    if len(many) != len(numbers):
        raise LandscapeError(f"expected a coefficient for each direction, found {len(numbers)} for {len(many)}")
    return list(zip(many, numbers, strict=True))


def _resolve(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Parameter]:
    # Unique parameters in the model's order, each under its first name.
    names = tuple(names)  # a generator would be empty the second time
    known = dict(model.named_parameters(remove_duplicate=False))
    buffers = {name for name, _ in model.named_buffers()}
    for name in names:
        if name not in known:
            what = "is a buffer, not a parameter" if name in buffers else "is no parameter of the model"
            raise LandscapeError(f"{name!r} {what}{nearest(name, known)}")
        if known[name].dtype not in _FLOATS:
            raise LandscapeError(f"expected floating point parameters, found {known[name].dtype} in {name!r}")
    if not names:
        raise LandscapeError("expected at least one tensor that moves, found none")
    # Two parameters on the same memory are one tensor: moving it under both names would move it twice.
    first: dict[tuple[object, ...], str] = {}
    for name, p in known.items():
        first.setdefault(_memory(p), name)
    wanted = {_memory(known[name]) for name in names}
    found = {name: known[name] for key, name in first.items() if key in wanted}
    _check_apart(found)
    return found


def _check_apart(parameters: dict[str, nn.Parameter]) -> None:
    # Views of one memory that are not the same view: each would overwrite the other.
    spans = sorted((p.untyped_storage().data_ptr(), p.storage_offset(), n) for n, p in parameters.items() if p.numel())
    for (storage, start, name), (other, begin, following) in itertools.pairwise(spans):
        p, q = parameters[name], parameters[following]
        scale = p.element_size() / q.element_size()
        extent = sum((size - 1) * step for size, step in zip(p.shape, p.stride(), strict=True))
        if storage == other and begin <= (start + extent) * scale:
            raise LandscapeError(f"{name!r} and {following!r} overlap in memory: they cannot move each by itself")


def _memory(p: Tensor) -> tuple[object, ...]:
    return (id(p),) if p.numel() == 0 else (p.device, p.data_ptr(), p.shape, p.stride())


def _role(model: nn.Module, name: str, p: Tensor) -> Role:
    """Rows of a matrix or filters, tokens, or a vector (bias, gain, scale), from the owner, the name and the shape.

    Filters are counted along the first axis: by its input channels in a transposed convolution.
    """
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(owner, _ROWS) and p.ndim >= 2:
        return "matrix"
    if isinstance(owner, _NORMS):
        return "vector"  # a layer norm over several axes has gains of as many
    if p.ndim >= 1 and _TOKEN.search(leaf):
        return "token"
    if p.ndim <= 1 or (p.ndim >= 3 and p.numel() == max(p.shape)):
        return "vector"  # (1, 1, D) and (D, 1, 1) are scales too
    return "token" if p.ndim == 3 and p.shape[0] == 1 else "matrix"


def half(tensor: Tensor) -> bool:
    """Whether a tensor is of half precision."""
    return tensor.dtype in (torch.float16, torch.bfloat16)


def norm_of(tensor: Tensor) -> float:
    """Frobenius norm in float64."""
    if not tensor.numel():
        return 0.0
    exact = tensor.cpu() if tensor.device.type == "mps" else tensor  # Apple's devices have no float64
    return float(torch.linalg.vector_norm(exact, dtype=torch.float64))
