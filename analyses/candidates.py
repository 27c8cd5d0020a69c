"""What a file could hold of an adapter's matrices: fewer bits, fewer hidden units, and what each choice costs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analyses.errors import AnalysisError

if TYPE_CHECKING:
    from torch import Tensor

    from analyses.command import OnStep
    from landscape.objective import Objective
    from landscape.space import Space
    from quant.lowbit import LowbitTensor

Choice = tuple[int, int]
"""Hidden units, and bits a weight."""
WHOLE = 0
"""Hidden units of a matrix that belongs to no pair."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A group of tensors as a file would hold them, and the divergence that this alone causes."""

    tensors: list[LowbitTensor]
    damage: float

    @property
    def nbytes(self) -> int:
        """Of codes, dense, and statistics."""
        return sum(t.nbytes for t in self.tensors)


Candidates = dict[tuple[str, ...], dict[Choice, Candidate]]


def candidates(
    space: Space, objective: Objective, quantizer: str, bits: Sequence[int], on_step: OnStep = None
) -> Candidates:
    """Every choice of every group of tensors, measured by itself.

    Raises
    ------
    AnalysisError
        If the predictions of one are inf or NaN, or are none of classes.
    """
    from analyses.pack import padded
    from analyses.rounding import evaluate, pairs

    centre = objective.evaluate()
    at = [b for _, b in pairs([quantizer], bits)]
    moments = hidden_moments(space, objective)
    found: Candidates = {}
    for group in groups(space):
        found[group] = {}
        for units, small in _sizes(space, group, moments):
            for b in at:
                tensors = _stored(small, quantizer, b)
                values = {t.name: padded(t.dense(), space.centre[t.name].shape) for t in tensors}
                kl = evaluate(objective, space, values).kl_from(centre)
                if kl != kl:
                    raise AnalysisError(f"{group[0]} at {b} bits: the predictions are inf or NaN, or no classes")
                found[group][units, b] = Candidate(tensors=tensors, damage=max(kl, 0.0))
                if on_step:
                    on_step()
    return found


def groups(space: Space) -> list[tuple[str, ...]]:
    """Names of the tensors that share hidden units, down and up; each other tensor by itself."""
    from analyses.weights import low_rank_pairs

    pairs = dict(low_rank_pairs(space.centre).values())
    ups = set(pairs.values())
    return [(name, pairs[name]) if name in pairs else (name,) for name in space.names if name not in ups]


def hidden_moments(space: Space, objective: Objective) -> dict[str, Tensor]:
    """E[z z'] (h, h) float64 of the hidden units of each pair on the objective's data, by the name of ``up``."""
    import torch

    sums: dict[str, Tensor] = {}
    hooks = []
    for group in groups(space):
        if len(group) == 2:
            name = group[1]

            def add(module: Any, args: tuple[Tensor, ...], name: str = name) -> None:
                z = args[0].detach().flatten(0, -2).double()
                sums[name] = sums.get(name, torch.zeros((), dtype=z.dtype)) + z.T @ z / len(z)

            module = space.model.get_submodule(name.removesuffix(".weight"))
            hooks.append(module.register_forward_pre_hook(add))
    try:
        objective.evaluate()
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def _sizes(space: Space, group: tuple[str, ...], moments: Mapping[str, Tensor]) -> list[tuple[int, dict[str, Tensor]]]:
    """Hidden units and the weights of a group with so many: all, and halves of it down to one."""
    from quant.merge import eliminate

    weights = {name: space.centre[name] for name in group}
    if len(group) == 1:
        return [(WHOLE, weights)]
    down, up = (weights[name] for name in group)
    found, size = [(len(down), weights)], len(down) // 2
    while size >= 1:
        kept, columns = eliminate(moments[group[1]], up, size)
        found.append((size, {group[0]: down[kept], group[1]: columns}))
        size //= 2
    return found


def _stored(weights: Mapping[str, Tensor], quantizer: str, bits: int) -> list[LowbitTensor]:
    from quant.content import LowbitTensor

    return [LowbitTensor.quantised(name, w, quantizer=quantizer, bits=bits) for name, w in weights.items()]
