"""Directions in weight space: random and normalised, orthogonal pairs, from one point to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError, nearest
from landscape.normalisation import (
    Normalisation,
    check_known,
    exact,
    gaussian,
    like_weight,
    normalised,
    quotient,
    rows_of,
    unit_of,
    with_norms,
)
from landscape.space import Policy, Space, norm_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """A vector in a space.

    Attributes
    ----------
    tensors
        One tensor for each tensor of the space, of its shape and dtype (float32 for half precision).
    seed
        Of the noise; None for a direction between two points.
    normalisation
        ``filter``, ``layer``, ``element``, ``between``, or the label of a direction computed elsewhere.
    policy
        The space's policy for what has no rows.
    flags
        Tensor name -> what a reader should know of it, such as rows of one entry.
    """

    tensors: Mapping[str, Tensor]
    seed: int | None
    normalisation: str
    policy: Policy
    flags: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def norm(self) -> float:
        """Frobenius norm over all tensors."""
        return self.dot(self) ** 0.5

    @cached_property
    def moved(self) -> frozenset[str]:
        """Names of the tensors that are not zero throughout."""
        return frozenset(name for name, d in self.tensors.items() if bool(d.any()))

    @cached_property
    def moving(self) -> int:
        """Number of entries that are not zero."""
        return sum(int(torch.count_nonzero(d)) for d in self.tensors.values())

    def dot(self, other: Direction) -> float:
        """Inner product with another direction of the same space, in float64."""
        names = [name for name in self.tensors if name in other.tensors]
        return sum(_dot(self.tensors[name], other.tensors[name]) for name in names)

    def describe(self) -> dict[str, Any]:
        """How it was drawn, as plain data for a provenance."""
        return {
            "seed": self.seed,
            "normalisation": self.normalisation,
            "norm": self.norm,
            "moving": self.moving,
            "flags": dict(self.flags),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row a tensor: name, entries, norm, flag."""
        import pandas as pd

        rows = [
            {"tensor": name, "entries": d.numel(), "norm": norm_of(d), "flag": self.flags.get(name, "")}
            for name, d in self.tensors.items()
        ]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>" + self.to_frame().to_html(index=False, max_rows=20)

    def __repr__(self) -> str:
        return f"Direction({self.normalisation}, seed={self.seed}, norm={self.norm:.4g}, moving={self.moving:,})"


def draw(space: Space, seed: int, normalisation: Normalisation | None = None) -> Direction:
    """Gaussian noise, normalised to the space's weights.

    Each tensor's noise comes from its own generator, seeded by (seed, tensor name): two models share the noise of the
    tensors they share (NUMERICS 16), whatever else moves.

    Parameters
    ----------
    space
        At whose centre the norms are taken.
    seed
        Another seed gives another direction.
    normalisation
        ``filter``, ``layer`` (one norm a tensor) or ``element`` (noise times |w|); default: as the policy says.

    An unknown normalisation is a ``LandscapeError``; so is a direction that moves nothing, which says which policy
    caused it.
    """
    chosen = space.policy.matrices if normalisation is None else normalisation
    check_known(chosen)
    tensors, flags = {}, {}
    for name in space.names:
        weight = exact(space.centre[name])
        unit = unit_of(space, name, chosen)
        drawn = torch.zeros_like(weight) if unit == "zero" else gaussian(seed, name, weight)
        if unit not in ("zero", "element") and weight.numel() and rows_of(weight, unit).shape[1] == 1:
            flags[name] = "rows of one entry: the noise is plus or minus w; normalise by layer to vary it"
        tensors[name] = like_weight(normalised(drawn, weight, unit), space.centre[name])
    return _not_zero(
        Direction(tensors=tensors, seed=seed, normalisation=chosen, policy=space.policy, flags=flags), space
    )


def orthogonal_pair(
    space: Space, seeds: tuple[int, int], normalisation: Normalisation | None = None
) -> tuple[Direction, Direction]:
    """Two directions, the second orthogonal to the first *after* normalisation.

    The second is made orthogonal filter by filter and given its filter norms again, which keeps both properties. Rows
    of one entry cannot be orthogonal and stay as drawn; :func:`cosine` tells what is left.

    Raises
    ------
    LandscapeError
        If the seeds are equal, or nothing would move.
    """
    if seeds[0] == seeds[1]:
        raise LandscapeError(f"expected two different seeds for a plane, found {seeds[0]} twice")
    first, second = draw(space, seeds[0], normalisation), draw(space, seeds[1], normalisation)
    tensors = {}
    for name, drawn in second.tensors.items():
        unit = unit_of(space, name, second.normalisation)
        if unit == "zero" or not drawn.numel():
            tensors[name] = drawn
            continue
        # Elementwise noise has no filters: the tensor as a whole is made orthogonal.
        unit = "whole" if unit == "element" else unit
        x, y = rows_of(exact(first.tensors[name]), unit), rows_of(exact(drawn), unit)
        rest = y - x * quotient((x * y).sum(dim=1, keepdim=True), (x * x).sum(dim=1, keepdim=True))
        rest = with_norms(rest, y.norm(dim=1, keepdim=True)) if x.shape[1] > 1 else y
        tensors[name] = like_weight(rest.reshape(drawn.shape), drawn)
    return first, Direction(
        tensors=tensors,
        seed=second.seed,
        normalisation=second.normalisation,
        policy=second.policy,
        flags=second.flags,
    )


def cosine(a: Direction, b: Direction) -> float:
    """Cosine of the angle between two directions of one space."""
    return a.dot(b) / (a.norm * b.norm)


def between(space: Space, other: Mapping[str, Tensor]) -> Direction:
    """From the space's centre (alpha 0) to other weights (alpha 1, to rounding), such as another checkpoint's.

    Raises
    ------
    LandscapeError
        If a tensor of the space is missing or has another shape, or all are equal.
    """
    tensors = {}
    for name, centre in space.centre.items():
        if name not in other:
            raise LandscapeError(f"expected {name!r} in the other weights, found none{nearest(name, other)}")
        if other[name].shape != centre.shape:
            raise LandscapeError(f"expected {name!r} {tuple(centre.shape)}, found {tuple(other[name].shape)}")
        tensors[name] = like_weight(exact(other[name]) - exact(centre), centre)
    direction = Direction(tensors=tensors, seed=None, normalisation="between", policy=space.policy)
    if not direction.moved:
        raise LandscapeError("expected two different points, found equal weights in every tensor of the space")
    return direction


def from_tensors(
    space: Space,
    tensors: Mapping[str, Tensor] | Tensor,
    label: str,
    *,
    norm: float | None = None,
    normalisation: Normalisation | None = None,
) -> Direction:
    """A direction that was computed elsewhere, such as an eigenvector of the Hessian.

    Parameters
    ----------
    space
        In which it lies.
    tensors
        Tensors of the space by name, those left out being zero; or one vector of all entries, (P,), in the order of
        ``space.names``.
    label
        What it is; stands in tables where random directions have their normalisation.
    norm
        Norm that it is scaled to; None leaves it as it is.
    normalisation
        Normalise it to the space's weights as :func:`draw` does noise, by the space's policy; None leaves it as it is.

    Raises
    ------
    LandscapeError
        For a tensor that is not the space's, a vector of another length, both kinds of scaling at once, or if nothing
        would move.
    """
    if norm is not None and normalisation is not None:
        raise LandscapeError("expected a norm or a normalisation, found both")
    if normalisation is not None:
        check_known(normalisation)
    given = _unflattened(space, tensors) if isinstance(tensors, Tensor) else tensors
    for name, tensor in given.items():
        if name not in space.centre:
            raise LandscapeError(f"{name!r} is no tensor of this space{nearest(name, space.centre)}")
        if tensor.shape != space.centre[name].shape:
            raise LandscapeError(f"expected {name!r} {tuple(space.centre[name].shape)}, found {tuple(tensor.shape)}")
    length = sum(norm_of(tensor) ** 2 for tensor in given.values()) ** 0.5
    if not length:
        raise LandscapeError(f"nothing moves: the direction {label!r} is zero in every tensor of the space")
    found = {}
    for name, centre in space.centre.items():
        values = torch.zeros(centre.shape, dtype=torch.float64)
        if name in given:
            values = exact(given[name]) * (1.0 if norm is None else norm / length)
        if normalisation is not None:
            values = normalised(values, exact(centre), unit_of(space, name, normalisation))
        found[name] = like_weight(values, centre)
    return _not_zero(Direction(tensors=found, seed=None, normalisation=label, policy=space.policy), space)


def _unflattened(space: Space, vector: Tensor) -> dict[str, Tensor]:
    entries = sum(centre.numel() for centre in space.centre.values())
    if vector.shape != (entries,):
        raise LandscapeError(f"expected a vector of the space's {entries} entries, found shape {tuple(vector.shape)}")
    parts = vector.split([centre.numel() for centre in space.centre.values()])
    return {name: part.reshape(space.centre[name].shape) for name, part in zip(space.names, parts, strict=True)}


def _not_zero(direction: Direction, space: Space) -> Direction:
    if direction.moved:
        return direction
    if all(space.held(name) for name in space.names):
        raise LandscapeError(
            f"nothing moves: the space has only biases, gains and scales ({space.names[0]!r}, ...) and policy "
            "bias_and_norm='zero' holds them still; use 'vector' or 'element'"
        )
    raise LandscapeError(
        "nothing moves: every tensor that policy bias_and_norm="
        f"{space.policy.bias_and_norm!r} lets move is zero, and noise normalised to zero weights is zero"
    )


def _dot(a: Tensor, b: Tensor) -> float:
    if a is b:
        return norm_of(a) ** 2
    return float((exact(a) * exact(b)).sum())
