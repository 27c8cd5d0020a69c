"""What a quantiser is: it fits a grid to a tensor, and the grid turns weights into codes and codes into values.

Symbols: G groups of L entries, each with S statistics. A group is the whole tensor, a row, or N consecutive entries;
every group has a grid of its own, and all that a file holds beside the codes are the S x G statistics.

A quantiser is a subclass with a few functions on a block of groups: ``measure``, ``encode`` and ``decode``, and
``forward`` and ``backward`` for training. Most have them from :class:`quant.quantizers._affine.Affine`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from quant.codebooks import check_bits
from quant.errors import QuantError

LAWS = {
    "monotone": "a larger weight of a group has no lower code",
    "identity": "the values of codes have these codes again on the same grid",
    "nearest": "the value of a weight is the nearest value of the grid",
    "scale": "c > 0 times a matrix has the same codes and c times the values",
    "shift": "a matrix plus c has the same codes and the values plus c",
    "falls": "on normal weights of deviation 0.02 each bit takes off 1 % of the error or more, the first of the mean's",
}


@dataclass(frozen=True, kw_only=True)
class Quantizer(ABC):
    """A rule that turns any weight tensor into codes of ``bits`` bits.

    Parameters
    ----------
    bits
        Of a code; within ``widths``.
    scope
        What shares a grid: empty (the whole tensor), ``row`` or ``group<N>``.
    stored
        How a statistic is stored; ``float16`` ones are rounded when the grid is fitted.

    Attributes
    ----------
    kind, widths
        The file's name, and the bits that it exists at.
    formula, source
        The value of a weight in a line, and who published it, for the page of the quantisers.
    scoped
        Whether rows or groups may have a grid of their own.
    trains
        Whether it has a straight-through gradient.
    learned
        Whether its statistics are a parameter in training (a step that is trained) instead of fitted in every pass.
    elementwise
        Whether there is a code for each weight.

    Raises
    ------
    QuantError
        If it does not exist at these bits, or in this scope.
    """

    kind: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    scoped: ClassVar[bool] = True
    widths: ClassVar[range] = range(1, 9)
    trains: ClassVar[bool] = True
    learned: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True
    bits: int
    scope: str = ""
    stored: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        if check_bits(self.bits) not in self.widths:
            at = f"{self.widths[0]} to {self.widths[-1]}" if len(self.widths) > 1 else f"{self.widths[0]}"
            raise QuantError(f"expected bits of {self.kind}: {at}, found {self.bits}")
        if self.scope and not self.scoped:
            raise QuantError(f"expected {self.kind} of the whole tensor, found /{self.scope}")

    @property
    def name(self) -> str:
        """The string it is asked for by, ``NAME[/row|/group<N>][/f16]``."""
        return "/".join([self.kind, *([self.scope] if self.scope else []), *(["f16"] * (self.stored == "float16"))])

    @property
    def levels(self) -> int:
        """How many codes there are, 0 to levels - 1."""
        return 2**self.bits

    @property
    @abstractmethod
    def laws(self) -> frozenset[str]:
        """The laws, of :data:`LAWS`, that hold at these bits; the conformance tests test just these."""

    @property
    @abstractmethod
    def statistic_names(self) -> tuple[str, ...]:
        """What is stored of each group; one name for a whole codebook, as ``value``, comes once a value."""

    def group_length(self, shape: tuple[int, ...]) -> int:
        """L, entries of a group; the last group may have fewer. A tensor of less than two axes is one row."""
        n = math.prod(shape)
        if self.scope == "row":
            return n // shape[0] if len(shape) > 1 else n
        return int(self.scope[len("group") :]) if self.scope else n

    def group_count(self, shape: tuple[int, ...]) -> int:
        """G, the number of groups."""
        return -(-math.prod(shape) // max(self.group_length(shape), 1))

    def statistics_count(self, shape: tuple[int, ...]) -> int:
        """How many statistics the grid of a tensor of that shape has."""
        return len(self.statistic_names) * self.group_count(shape)

    def codes_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the codes of a tensor of that shape."""
        return tuple(shape)

    def blocks(self, w: Tensor) -> list[Tensor]:
        """The groups of a tensor, (G, L), and in a block of its own the last if it has fewer entries."""
        if not self.scope:
            return [w.reshape(1, -1)]
        return [x for (x,) in _blocks(self.group_length(tuple(w.shape)), w)]

    def fit(self, w: Tensor) -> Grid:
        """The grid of a tensor of any shape. A constant tensor, or one of a single entry, gets a grid of one value.

        Computed in float32, in float64 for a tensor of float64.

        Raises
        ------
        QuantError
            If the tensor is empty or not of floats, holds a NaN or an infinity, or its statistics are not finite.
        """
        if not w.is_floating_point() or w.numel() == 0:
            raise QuantError(f"expected a tensor of floats with entries, found {w.dtype} of shape {tuple(w.shape)}")
        w = w.detach()
        w = w if w.dtype == torch.float64 else w.float()
        shape = tuple(w.shape)
        parts = [self.measure(x) for x in self.blocks(w)]
        table = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        if self.stored == "float16":
            table = table.half().to(w.dtype)
        if not _finite(table):
            raise QuantError(self._not_finite(w))
        return Grid(quantizer=self, shape=shape, table=table)

    def grid(self, statistics: Tensor, shape: tuple[int, ...]) -> Grid:
        """The grid of a tensor of that shape again, from what was stored of it.

        Raises
        ------
        QuantError
            If the statistics are not as many finite float32 as it needs, or of no use to it.
        """
        count, names = self.statistics_count(shape), ", ".join(dict.fromkeys(self.statistic_names))
        if statistics.dtype != torch.float32 or statistics.shape != (count,):
            found = f"{statistics.dtype} of shape {tuple(statistics.shape)}"
            raise QuantError(f"expected {count} float32 statistics ({names}), found {found}")
        table = statistics.detach().clone().view(-1, self.group_count(shape))
        if wrong := self.refuse(table) if _finite(table) else "all finite":
            raise QuantError(f"expected statistics ({names}) {wrong}, found {_some(statistics)}")
        return Grid(quantizer=self, shape=tuple(shape), table=table)

    @abstractmethod
    def measure(self, x: Tensor) -> Tensor:
        """Statistics (S, G) of groups (G, L), before any rounding; not finite where the weights are not."""

    @abstractmethod
    def encode(self, x: Tensor, table: Tensor) -> Tensor:
        """Codes (uint8) of groups (G, L) on grids of statistics (S, G, 1)."""

    @abstractmethod
    def decode(self, codes: Tensor, table: Tensor) -> Tensor:
        """Values of codes."""

    def forward(self, x: Tensor, table: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Values of groups (G, L) as ``decode`` gives those of their codes, and what ``backward`` needs, all (G, L)."""
        return self.decode(self.encode(x, table), table), ()

    def backward(self, grad: Tensor, table: Tensor, *saved: Tensor) -> Tensor:
        """Straight-through gradient (G, L) in the weights of a loss whose gradient in the values is ``grad`` (G, L)."""
        raise NotImplementedError(f"{self.kind} does not train")

    def refuse(self, table: Tensor) -> str:
        """What finite statistics (S, G) should have been, or nothing if they make a grid."""
        return ""

    def _not_finite(self, w: Tensor) -> str:
        low, high = (w.min().item(), w.max().item())
        if not math.isfinite(low + high):
            return f"expected finite weights, found values from {low:.4g} to {high:.4g}"
        std, mean = torch.std_mean(w, correction=min(w.numel() - 1, 1))
        return (
            f"expected weights whose statistics {self.stored} can hold, found values from {low:.4g} to {high:.4g}, "
            f"mean {mean.item():.4g}, standard deviation {std.item():.4g}"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """The values that one tensor may take.

    quantizer: what made it. shape: of the tensor. table: (S, G), in the dtype that all is computed in (float32, or
    float64 where the tensor is).
    """

    quantizer: Quantizer
    shape: tuple[int, ...]
    table: Tensor

    @property
    def statistics(self) -> Tensor:
        """What is stored: float32, shape (S * G,), one statistic of all groups after the other."""
        return self.table.flatten().float()

    def codes(self, w: Tensor) -> Tensor:
        """Codes of weights, uint8; 0 is the lowest value, a tie goes to the lower code.

        Where one grid serves the whole tensor, weights of any shape.

        Raises
        ------
        QuantError
            If a weight is NaN. An infinity gets the outermost code.
        """
        if torch.isnan(w).any():
            raise QuantError(f"expected finite weights, found {int(torch.isnan(w).sum())} NaN of {w.numel()}")
        x = w.detach().to(self.table.dtype)
        parts = [self.quantizer.encode(x, table) for x, table in self.groups(x)]
        return _joined(parts).view(self.quantizer.codes_shape(tuple(w.shape)))

    def values(self, codes: Tensor) -> Tensor:
        """Values of codes (uint8), in the dtype of the grid and the shape of the weights."""
        values = _joined([self.quantizer.decode(k, table) for k, table in self.groups(codes)])
        if self.quantizer.elementwise:
            return values.view(codes.shape)
        return values.flatten()[: math.prod(self.shape)].view(self.shape)

    def forward(self, w: Tensor) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """The values of finite weights, as ``values`` of their ``codes``, and what ``backward`` needs of each block."""
        done = [self.quantizer.forward(x, table) for x, table in self.groups(w.detach().to(self.table.dtype))]
        return _joined([values for values, _ in done]).view(w.shape), [saved for _, saved in done]

    def groups(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Blocks of the tensors, (G, L), each with its part of the table, (S, G, 1).

        Raises
        ------
        QuantError
            If there are several grids and the tensors are not of the shape that they were fitted to.
        """
        columns = self.table[:, :, None]
        if self.table.shape[1] == 1:
            return [(*(t.reshape(1, -1) for t in tensors), columns)]
        if tensors[0].numel() != math.prod(self.shape):
            found = tuple(tensors[0].shape)
            raise QuantError(f"expected as many weights as the grids were fitted to, {self.shape}, found {found}")
        blocks = _blocks(self.quantizer.group_length(self.shape), *tensors)
        tables = columns.split([b[0].shape[0] for b in blocks], dim=1)
        return [(*block, table) for block, table in zip(blocks, tables, strict=True)]


def _blocks(length: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The tensors as (whole groups, length), then what is left as (1, fewer)."""
    n = tensors[0].numel()
    if n <= length:
        return [tuple(t.reshape(1, -1) for t in tensors)]
    flat, whole = [t.reshape(-1) for t in tensors], n - n % length
    blocks = [tuple(t[:whole].view(-1, length) for t in flat)]
    return blocks + [tuple(t[whole:].view(1, -1) for t in flat)] * (whole < n)


def _finite(table: Tensor) -> bool:
    if table.numel() > 32:
        return bool(torch.isfinite(table).all())
    return all(map(math.isfinite, table.flatten().tolist()))  # of few the quicker way


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([p.reshape(-1) for p in parts])


def _some(statistics: Tensor) -> str:
    shown = ", ".join(f"{s:.4g}" for s in statistics[:4].tolist())
    return f"[{shown}{', ...' if statistics.numel() > 4 else ''}]"
