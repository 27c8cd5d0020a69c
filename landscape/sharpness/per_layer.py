"""Which blocks are sharp: average sharpness with one block of the network moving at a time."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from landscape.directions import Direction
from landscape.estimate import Estimate
from landscape.objective import Objective
from landscape.sharpness._balls import relative_ball
from landscape.sharpness._meter import Meter, mean_and_error, positive, reached, whole
from landscape.sharpness.average import MEASURE, UNIT, both_signs
from landscape.space import Space

if TYPE_CHECKING:
    import pandas as pd

_ALL = "(all)"


@dataclass(frozen=True, kw_only=True, eq=False)
class PerLayer:
    """Average sharpness of each block, the sharpest first.

    Attributes
    ----------
    blocks
        Name of the block -> its estimate; the details have its tensors and entries moving.
    whole
        The same noise with all blocks moving at once. The blocks' rises need not add up to it.
    still
        Blocks in which nothing moves: the policy holds them still, or all their weights are zero.
    """

    blocks: dict[str, Estimate]
    whole: Estimate
    still: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a block, the sharpest first, and ``(all)`` last."""
        import pandas as pd

        rows = [
            {
                "block": name,
                "rise_nats": e.value,
                "rise_se_nats": e.se,
                "moving": e.details["moving"],
                "effective_radius": e.details["effective_radius"],
                "status": e.status,
            }
            for name, e in {**self.blocks, _ALL: self.whole}.items()
        ]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>" + self.to_frame().to_html(index=False)

    def __repr__(self) -> str:
        first = next(iter(self.blocks))
        return f"PerLayer({len(self.blocks)} blocks, sharpest {first!r}: {self.blocks[first].value:.4g} nats)"


def block_of(name: str) -> str:
    """A tensor's block: its module's path up to the first number, as ``blocks.3`` for ``blocks.3.norm1.weight``."""
    path = name.rpartition(".")[0] or name
    numbered = re.match(r"(?:[^.]*\.)*?\d+(?=\.|$)", path)
    return numbered.group() if numbered else path


def per_layer(
    objective: Objective,
    space: Space,
    *,
    rho: float = 0.1,
    norm: str = "l2",
    directions: int = 8,
    error: float = 0.2,
    seed: int = 0,
    block: Callable[[str], str] = block_of,
) -> PerLayer:
    """Average sharpness (:mod:`landscape.sharpness.average`) with one block moving and all others at their centre.

    A block's noise is that of the whole space's directions, restricted to it, so the rises of blocks are comparable
    with each other and with that of the whole.

    Parameters
    ----------
    objective, space
        Whose loss rises, and what moves.
    rho, norm, directions, error, seed
        As of the average sharpness.
    block
        Name of a tensor -> name of its block.

    Returns
    -------
    PerLayer
        An estimate a block and one of the whole, in nats, with standard errors over directions.

    Wrong settings, and a space in which nothing moves, are a ``LandscapeError``.
    """
    positive("rho", rho)
    whole("directions", directions)
    ball = relative_ball(space, norm, rho)
    groups = {_ALL: list(space.names)}
    for name in space.names:
        groups.setdefault(block(name), []).append(name)
    tallies = {group: _Tally(members) for group, members in groups.items()}
    settings = {"rho": rho, "norm": ball.name, "directions": directions, "seed": seed}
    with Meter(objective, space) as meter:
        for i in range(directions):
            direction = ball.draw(seed + i)
            for tally in tallies.values():
                tally.add(meter, direction, rho)
        found = {group: t.estimate(meter, group, settings, error) for group, t in tallies.items() if t.rises}
    everything = found.pop(_ALL)
    # NaN first: a block that breaks the loss is the sharpest.
    order = sorted(found, key=lambda group: (not math.isnan(found[group].value), -found[group].value))
    return PerLayer(
        blocks={group: found[group] for group in order},
        whole=everything,
        still=tuple(group for group, t in tallies.items() if not t.rises),
    )


@dataclass
class _Tally:
    """What was measured of one block."""

    tensors: list[str]
    rises: list[float] = field(default_factory=list)
    radii: list[float] = field(default_factory=list)
    moving: int = 0
    nonfinite: int = 0
    seconds: float = 0.0

    def add(self, meter: Meter, direction: Direction, rho: float) -> None:
        """The block's part of a direction, with both signs."""
        started, broken = time.perf_counter(), meter.nonfinite_points
        part = replace(direction, tensors={n: direction.tensors[n] for n in self.tensors if n in direction.tensors})
        if not part.moved:
            return
        self.moving = part.moving
        plus, minus = both_signs(meter, part, rho)
        self.rises.append((plus.rise_over(meter.centre)[0] + minus.rise_over(meter.centre)[0]) / 2)
        self.radii.append(meter.radius(part, rho))
        self.nonfinite += meter.nonfinite_points - broken
        self.seconds += time.perf_counter() - started

    def estimate(self, meter: Meter, block: str, settings: Mapping[str, Any], error: float) -> Estimate:
        """The block's average sharpness, with its own part of the cost."""
        value, se = mean_and_error(self.rises)
        details = {
            **settings,
            "block": block,
            "tensors": self.tensors,
            "moving": self.moving,
            "effective_radius": mean_and_error(self.radii)[0],
        }
        found = meter.estimate(
            MEASURE,
            UNIT,
            value,
            se=se,
            error_over="directions",
            status=reached(value, se, error),
            details=details,
            draws=self.rises,
        )
        cost = {"forwards": 2.0 * len(self.rises), "gradients": 0.0, "seconds": self.seconds}
        return replace(found, cost=cost, details={**found.details, "nonfinite_points": self.nonfinite})
