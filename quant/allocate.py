"""Which choice for each matrix, so that all fit into a budget of bytes with the least damage.

The Lagrangian way (Shoham and Gersho 1988): for a price a byte, each matrix takes the choice of least damage plus price
times bytes, whatever the others take. As the price falls the matrices walk along the lower convex hulls of their
choices; damages are assumed to add up. What is left of the budget at the end buys single improvements.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from quant.errors import QuantError

Name = TypeVar("Name", bound=Hashable)
Choice = TypeVar("Choice", bound=Hashable)
Cost = tuple[int, float]
"""Bytes, and damage."""


@dataclass(frozen=True, kw_only=True)
class Allocation(Generic[Name, Choice]):
    """A choice for each matrix, their bytes and damage in all, and the price a byte at which the hulls were left."""

    chosen: Mapping[Name, Choice]
    nbytes: int
    damage: float
    price: float


def allocate(choices: Mapping[Name, Mapping[Choice, Cost]], budget: int) -> Allocation[Name, Choice]:
    """The choices of least damage in all that fit into ``budget`` bytes.

    Among allocations that take as many bytes as the hulls had taken when the first step did not fit, none has less
    damage. Filling up afterwards only lowers it.

    Raises
    ------
    QuantError
        If a matrix has no choice, a damage is NaN, or even the smallest choices do not fit.
    """
    hulls = {name: _hull(name, of) for name, of in choices.items()}
    place = dict.fromkeys(hulls, 0)
    taken = sum(hull[0][1][0] for hull in hulls.values())
    if taken > budget:
        raise QuantError(
            f"expected a budget of at least {taken} bytes, which the smallest choices take, found {budget}"
        )
    # Steps along all hulls, steepest first; on one hull the slopes fall, so its steps come in order.
    steps = sorted(
        (
            (_slope(a[1], b[1]), at, name)
            for name, hull in hulls.items()
            for at, (a, b) in enumerate(itertools.pairwise(hull))
        ),
        key=lambda step: -step[0],
    )
    price = 0.0
    for slope, at, name in steps:
        more = hulls[name][at + 1][1][0] - hulls[name][at][1][0]
        if taken + more > budget:
            price = slope
            break
        taken, place[name] = taken + more, at + 1
    chosen = {name: hulls[name][at][0] for name, at in place.items()}
    taken = _fill(choices, chosen, taken, budget)
    damage = sum(choices[name][choice][1] for name, choice in chosen.items())
    return Allocation(chosen=chosen, nbytes=taken, damage=damage, price=price)


def _fill(choices: Mapping[Name, Mapping[Choice, Cost]], chosen: dict[Name, Choice], taken: int, budget: int) -> int:
    """Take the best single improvement a byte that still fits, until there is none; changes ``chosen``."""
    while True:
        best: tuple[float, Name, Choice] | None = None
        for name, of in choices.items():
            now = of[chosen[name]]
            for choice, cost in of.items():
                gain = now[1] - cost[1]
                if gain > 0 and taken - now[0] + cost[0] <= budget:
                    rate = gain / max(cost[0] - now[0], 1)
                    if best is None or rate > best[0]:
                        best = rate, name, choice
        if best is None:
            return taken
        _, name, choice = best
        taken += choices[name][choice][0] - choices[name][chosen[name]][0]
        chosen[name] = choice


def _hull(name: Name, of: Mapping[Choice, Cost]) -> list[tuple[Choice, Cost]]:
    """The choices on the lower convex hull of damage over bytes, from the fewest bytes to the least damage.

    Raises
    ------
    QuantError
        If there is no choice, or a damage is NaN.
    """
    if not of:
        raise QuantError(f"expected at least one choice of {name}, found none")
    if any(damage != damage for _, damage in of.values()):
        raise QuantError(f"expected damages of the choices of {name}, found NaN")
    hull: list[tuple[Choice, Cost]] = []
    for choice, cost in sorted(of.items(), key=lambda item: item[1]):
        if hull and cost[1] >= hull[-1][1][1]:
            continue  # more bytes for no less damage
        while len(hull) > 1 and _slope(hull[-1][1], cost) >= _slope(hull[-2][1], hull[-1][1]):
            hull.pop()
        hull.append((choice, cost))
    return hull


def _slope(a: Cost, b: Cost) -> float:
    # damage saved a byte
    return (a[1] - b[1]) / (b[0] - a[0])
