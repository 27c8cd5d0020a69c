"""The sets that a worst case is sought in: which moves are allowed, and how to project onto them.

A move is one tensor for each tensor that moves. What the space's policy holds still (biases and norm gains by default)
and what has radius zero (zero weights, zero filters) does not move: its entries are exactly 0, never 0/0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from landscape.directions import Direction, draw
from landscape.errors import LandscapeError
from landscape.normalisation import gaussian, rows_of, unit_of
from landscape.sharpness._meter import among
from landscape.space import Space, half

Tensors = dict[str, Tensor]


class Ball(ABC):
    """Moves of at most a radius ``rho``, in a norm of its own.

    Attributes
    ----------
    name
        What it is, for tables.
    """

    name: str

    def __init__(self, space: Space, rho: float) -> None:
        self.space, self.rho = space, rho
        self.names = [name for name in space.names if not space.held(name)]
        if not self.names:
            raise LandscapeError(
                f"nothing moves: the space has only biases, gains and scales ({space.names[0]!r}, ...) and policy "
                "bias_and_norm='zero' holds them still; use 'vector' or 'element'"
            )

    @abstractmethod
    def project(self, move: Mapping[str, Tensor]) -> Tensors:
        """The nearest move of the ball; one that is inside, to rounding, comes back bit for bit."""

    @abstractmethod
    def steepest(self, gradient: Mapping[str, Tensor]) -> Tensors:
        """The move of the ball that raises a loss of this gradient most, to first order; 0 where the gradient is."""

    @abstractmethod
    def draw(self, seed: int) -> Direction:
        """A random move of the ball of radius 1; the noise of a tensor is that of (seed, its name)."""

    def zero(self) -> Tensors:
        """The centre."""
        return {name: like(torch.zeros(c.shape), c) for name, c in self._centres()}

    def scaled(self, direction: Direction, coefficient: float) -> Tensors:
        """Coefficient * direction, projected."""
        return self.project({name: coefficient * direction.tensors[name] for name in self.names})

    def _centres(self) -> list[tuple[str, Tensor]]:
        return [(name, self.space.centre[name]) for name in self.names]

    def _direction(self, tensors: Mapping[str, Tensor], seed: int) -> Direction:
        direction = Direction(tensors=tensors, seed=seed, normalisation=self.name, policy=self.space.policy)
        if not direction.moved:
            raise LandscapeError("nothing moves: every tensor that may move is zero, and the ball is relative to it")
        return direction


class FilterBall(Ball):
    """||move_i||_2 <= rho ||w_i||_2 for every filter i: the filters of :func:`landscape.directions.draw`.

    A filter-normalised direction times rho lies on its surface. Where the policy is ``element``, each entry is a filter
    of its own, and Gaussian noise, which has no bound there, is cut to it.
    """

    name = "filter-relative l2"

    def __init__(self, space: Space, rho: float) -> None:
        super().__init__(space, rho)
        # r_i = rho ||w_i||
        self._radii = {name: rho * _norms(filters(space, name, c)) for name, c in self._centres()}

    def project(self, move: Mapping[str, Tensor]) -> Tensors:
        found = {}
        for name in self.names:
            rows, radius = filters(self.space, name, move[name]), self._radii[name]
            norm = _norms(rows)
            outside = norm > radius * (1 + _rounding(rows))
            # x_i min(1, r_i / ||x_i||)
            rows = torch.where(outside, _times(rows, _quotient(radius, norm)), rows)
            found[name] = rows.reshape(move[name].shape)
        return found

    def steepest(self, gradient: Mapping[str, Tensor]) -> Tensors:
        found = {}
        for name in self.names:
            rows = filters(self.space, name, gradient[name])
            # r_i g_i / ||g_i||
            found[name] = _times(rows, _quotient(self._radii[name], _norms(rows))).reshape(gradient[name].shape)
        return found

    def draw(self, seed: int) -> Direction:
        found, tensors = draw(self.space, seed), {}
        for name, c in self._centres():
            if unit_of(self.space, name, self.space.policy.matrices) == "element":
                tensors[name] = found.tensors[name].clamp(-like(c, c).abs(), like(c, c).abs())
        return replace(found, tensors={**found.tensors, **tensors})


class Box(Ball):
    """|move_j| <= rho width(w)_j for every entry j; relative to the weights unless another width is given."""

    def __init__(
        self,
        space: Space,
        rho: float,
        width: Callable[[Tensor], Tensor] = torch.abs,
        name: str = "elementwise-relative linf",
    ) -> None:
        super().__init__(space, rho)
        self.name, self._width = name, width

    def project(self, move: Mapping[str, Tensor]) -> Tensors:
        # min(max(x_j, -rho width_j), rho width_j)
        bounds = self.bounds()
        return {name: move[name].clamp(-bounds[name], bounds[name]) for name in self.names}

    def steepest(self, gradient: Mapping[str, Tensor]) -> Tensors:
        # rho width_j sign(g_j)
        bounds = self.bounds()
        return {name: bounds[name] * gradient[name].sign() for name in self.names}

    def draw(self, seed: int) -> Direction:
        # width_j u_j with u_j uniform on [-1, 1]: u = erf(z / sqrt 2) for standard normal z.
        uniform = {name: torch.erf(gaussian(seed, name, c) / 2**0.5) for name, c in self._centres()}
        return self._direction(
            {name: like(uniform[name] * self._width(c.cpu().double()), c) for name, c in self._centres()}, seed
        )

    def bounds(self) -> Tensors:
        """The largest move of each entry, rho times its width."""
        return {name: self.rho * self._width(like(c, c)) for name, c in self._centres()}


class Ellipsoid(Ball):
    """||move / scale(w)||_2 <= rho over all entries at once; entries of scale 0 do not move.

    Projection and steepest ascent are those of the scaled coordinates move / scale, in which this is a ball.
    """

    def __init__(self, space: Space, rho: float, scale: Callable[[Tensor], Tensor], name: str) -> None:
        super().__init__(space, rho)
        self.name, self._scale = name, scale

    def project(self, move: Mapping[str, Tensor]) -> Tensors:
        inside = {name: torch.where(s > 0, move[name], 0.0) for name, s in self._scales()}
        norm = self.norm(inside)
        if norm <= self.rho * (1 + max(_rounding(x) for x in inside.values())):
            return inside
        # x rho / ||x / s||
        return {name: _times(x, self.rho / norm) for name, x in inside.items()}

    def steepest(self, gradient: Mapping[str, Tensor]) -> Tensors:
        steps = {name: s * gradient[name] for name, s in self._scales()}
        length = _total(steps)
        # rho s^2 g / ||s g||   (s = |w|: ASAM, Kwon et al. 2021; s = 1: SAM, Foret et al. 2021)
        return {name: _times(s * steps[name], self.rho / length if length else 0.0) for name, s in self._scales()}

    def draw(self, seed: int) -> Direction:
        # s z / ||z||, over the entries that move
        noise = {name: torch.where(s.cpu() > 0, gaussian(seed, name, s), 0.0) for name, s in self._scales()}
        length = _total(noise) or 1.0
        return self._direction(
            {name: like(s.cpu().double() * noise[name] / length, s) for name, s in self._scales()}, seed
        )

    def norm(self, move: Mapping[str, Tensor]) -> float:
        """||move / scale||_2, without the entries of scale 0."""
        return _total({name: _quotient(move[name], s) for name, s in self._scales()})

    def _scales(self) -> list[tuple[str, Tensor]]:
        return [(name, self._scale(like(c, c))) for name, c in self._centres()]


def relative_ball(space: Space, norm: str, rho: float) -> Ball:
    """The ball of a norm relative to the weights: ``l2``, filter by filter, or ``linf``, entry by entry."""
    among("norm", norm, ("l2", "linf"))
    return FilterBall(space, rho) if norm == "l2" else Box(space, rho)


def filters(space: Space, name: str, tensor: Tensor) -> Tensor:
    """(G, entries): the filters of a tensor that moves, as the space's policy divides it."""
    unit = unit_of(space, name, space.policy.matrices)
    return tensor.reshape(-1, 1) if unit == "element" else rows_of(tensor, unit)


def like(values: Tensor, weight: Tensor) -> Tensor:
    """On the device of a weight, in the dtype that its moves have."""
    return values.detach().to(weight.device, torch.float32 if half(weight) else weight.dtype)


def _norms(rows: Tensor) -> Tensor:
    """(G, 1), in float64 where the device has it."""
    dtype = torch.float32 if rows.device.type == "mps" else torch.float64
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=dtype)


def _total(tensors: Mapping[str, Tensor]) -> float:
    return sum(float(_norms(x.reshape(1, -1))) ** 2 for x in tensors.values()) ** 0.5


def _times(tensor: Tensor, factor: Tensor | float) -> Tensor:
    """The product in the factor's precision, in the tensor's dtype."""
    return (tensor * factor).to(tensor.dtype)


def _rounding(x: Tensor) -> float:
    # Within rounding of its radius a move is inside: what was projected comes back bit for bit.
    return 4 * torch.finfo(x.dtype).eps


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)
