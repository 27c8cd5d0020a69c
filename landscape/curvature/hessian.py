"""Exact products with the Hessian of the mean loss (Pearlmutter 1994), by differentiating a kept gradient again."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.curvature.graphs import Graphs
from landscape.curvature.operator import ModelOperator
from landscape.errors import LandscapeError
from landscape.gradient import differentiable
from landscape.objective import Objective
from landscape.space import Space


@dataclass(frozen=True)
class _Gradient:
    """Gradients of a batch's share of the mean loss that depend on the weights, and which tensors they belong to."""

    places: list[int]
    tensors: list[Tensor]
    loss: float


class Hessian(ModelOperator):
    """v -> H v with H the Hessian of sum of losses / N over all samples, whatever the batch size.

    Reverse over reverse with the graph of the gradient kept while it fits into memory, so that a product is one
    backward pass through it. Fused attention kernels have no second derivative: the plain one runs inside ``with``, and
    a loss that then differs from the model's own is a warning.

    Parameters
    ----------
    objective, space
        On one model; the tensors of the space are differentiated, whether frozen, unused or shared.
    surrogate
        Whether to go on in a ``requantised`` space (see :class:`landscape.curvature.operator.ModelOperator`).
    batch_size
        Rows a graph; None takes the objective's, at most 64 on a processor. Changes products by rounding only.
    keep_bytes
        Memory for kept graphs; None takes 4 GiB on a processor, half of what is free on another device; 0 keeps none.
        What does not fit is built again for each call of ``products``, once for all of its vectors.

    A loss that does not depend on the space through differentiable steps, or that is random in eval mode, is a
    ``LandscapeError``.
    """

    name = "hessian"

    def __init__(
        self,
        objective: Objective,
        space: Space,
        *,
        surrogate: bool = False,
        batch_size: int | None = None,
        keep_bytes: int | None = None,
    ) -> None:
        super().__init__(objective, space, surrogate=surrogate)
        self.graphs = Graphs(objective, self._build, batch_size, keep_bytes)
        self.losses: dict[str, float] = {}

    def describe(self) -> dict[str, Any]:
        """As the base class, with the batch size of the products, the share of graphs kept and the two losses."""
        kept = {"product_batch_size": self.graphs.batch_size, "graphs_kept": self.graphs.kept}
        return {**super().describe(), **kept, **self.losses}

    def _open(self, stack: ExitStack) -> None:
        super()._open(stack)
        stack.callback(self.graphs.clear)
        if not self.losses:
            self.cost["forwards"] += 1
            self.losses = {"loss_nats": self.objective.evaluate().mean_loss}
        self._parameters = stack.enter_context(differentiable(self.space, twice=True))

    def _products(self, vectors: Tensor) -> Tensor:
        while True:
            try:
                return self._pass(vectors)
            except RuntimeError as error:
                if not self.graphs.relieve(error):
                    raise

    def _pass(self, vectors: Tensor) -> Tensor:
        found = torch.zeros_like(vectors)
        parts = [self._parts(v) for v in vectors]
        loss, before = 0.0, self.graphs.built
        for graph in self.graphs:
            loss += graph.loss
            for row, v in zip(found, parts, strict=True):
                # H v = d(g . v) / dw
                derivatives = (
                    torch.autograd.grad(
                        graph.tensors,
                        self._parameters,
                        [v[i] for i in graph.places],
                        retain_graph=True,
                        allow_unused=True,
                    )
                    if graph.tensors
                    else [None] * len(self._parameters)
                )
                row += self._joined(derivatives)
        self.cost["forwards"] += self.graphs.built - before
        self.cost["gradients"] += self.graphs.built - before
        if "loss_differentiated_nats" not in self.losses:
            self._compare(loss)
        return found

    def _build(self, rows: slice) -> _Gradient:
        objective = self.objective
        # sum / N, so that an unequal last batch weighs as many samples as it has
        loss = objective.losses(objective.logits(rows), rows).sum() / objective.n
        if loss.grad_fn is None:
            raise LandscapeError("the loss does not depend on the space's tensors through differentiable steps")
        gradients = torch.autograd.grad(loss, self._parameters, create_graph=True, allow_unused=True)
        used = [(i, g) for i, g in enumerate(gradients) if g is not None and g.requires_grad]
        return _Gradient(places=[i for i, _ in used], tensors=[g for _, g in used], loss=float(loss.detach()))

    def _compare(self, differentiated: float) -> None:
        """Whether the loss that was differentiated is the model's own, to rounding."""
        own = self.losses["loss_nats"]
        self.losses["loss_differentiated_nats"] = differentiated
        rounding = 64 * max(torch.finfo(p.dtype).eps for p in self.space.parameters.values())
        if abs(differentiated - own) > rounding * max(1.0, abs(own)):
            warnings.warn(
                f"the loss with differentiable attention is {differentiated:.8g}, the model's own is {own:.8g}: they "
                "differ by more than rounding, so the Hessian is that of another function",
                RuntimeWarning,
                stacklevel=5,
            )
