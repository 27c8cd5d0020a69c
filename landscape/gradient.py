"""The gradient of an objective with respect to the tensors of a space, at the weights that the model has now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.errors import LandscapeError
from landscape.guard import eval_mode, random_states
from landscape.memory import GraphSize, budget
from landscape.objective import Objective
from landscape.plain import written_out
from landscape.space import Space, half


@contextmanager
def differentiable(space: Space, *, twice: bool = False) -> Iterator[list[Tensor]]:
    """The space's parameters as the only ones that require gradients, in eval mode; all is put back afterwards.

    Parameters
    ----------
    space
        Whose parameters are differentiated.
    twice
        Whether second derivatives are taken: fused attention kernels have none, and that of weight normalisation is
        wrong, so the plain ones are chosen.

    Yields
    ------
    list of Tensor
        Parameters, in the order of ``space.names``.

    Raises
    ------
    LandscapeError
        If running statistics are not frozen, or two parameters share their memory.
    """
    if space.batch_norm != "freeze":
        raise LandscapeError("gradients are taken at fixed running statistics: batch_norm 'freeze'")
    mine = {id(p) for p in space.parameters.values()}
    space.check_tied()
    changed = [p for p in space.model.parameters() if p.requires_grad != (id(p) in mine)]
    for p in changed:
        p.requires_grad_(not p.requires_grad)
    try:
        with random_states(space.model), eval_mode(space.model), torch.enable_grad():
            if twice:
                with sdpa_kernel(SDPBackend.MATH), written_out(space.model):
                    yield list(space.parameters.values())
            else:
                yield list(space.parameters.values())
    finally:
        for p in changed:
            p.requires_grad_(not p.requires_grad)


def gradient(objective: Objective, space: Space, rows: slice | None = None) -> tuple[float, dict[str, Tensor]]:
    """Mean loss over the rows (default: all) and its gradient, name -> tensor of the parameter's shape and dtype,
    float32 for a half one: sums over batches would lose in half precision what each adds.

    A tensor that the loss does not use has a zero gradient. ``.grad`` of the parameters is not touched. The objective's
    batch size is halved, with a warning, where memory runs out. No batch has more rows than its graph has memory for
    (:mod:`landscape.memory`).

    Raises
    ------
    LandscapeError
        If the objective is on another model, or the loss does not depend on the model through differentiable steps.
    """
    if objective.model is not space.model:
        raise LandscapeError("expected the objective on the model of the space, found another model")
    chosen = rows or slice(0, objective.n)
    with differentiable(space) as parameters:
        return objective.in_memory(lambda: _sums(objective, space, parameters, chosen))


def _sums(objective: Objective, space: Space, parameters: list[Tensor], rows: slice) -> tuple[float, dict[str, Tensor]]:
    count, total = rows.stop - rows.start, 0.0
    sums = {
        name: torch.zeros_like(p, dtype=torch.float32 if half(p) else p.dtype) for name, p in space.parameters.items()
    }

    def mean_loss(batch: slice) -> Tensor:
        return objective.losses(objective.logits(batch), batch).sum() / count

    if objective.graph_rows is None:
        size = GraphSize.measured(mean_loss, objective)
        objective.graph_rows = size.rows(objective.n, budget(objective.device))
    for batch in objective.batches(rows, objective.graph_rows):
        loss = mean_loss(batch)
        if loss.grad_fn is None:
            raise LandscapeError("the loss does not depend on the space's tensors through differentiable steps")
        total += float(loss.detach())
        for name, g in zip(space.names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            if g is not None:
                sums[name] += g
    return total, sums
