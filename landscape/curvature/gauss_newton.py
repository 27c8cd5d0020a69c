"""Products with J' M J, J the Jacobian of the logits: Gauss-Newton and Fisher matrices, one metric M each.

M is block diagonal, a block a sample, and acts on the logits: of the loss's own curvature (Gauss-Newton), of the
predicted classes (true Fisher), or of the loss's gradient (empirical Fisher). Per-sample gradients are never formed,
since a sample's gradient is J_n' of its derivative by the logits; in eval mode a sample's logits depend on no other's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from landscape.curvature.graphs import Graphs
from landscape.curvature.operator import ModelOperator
from landscape.errors import LandscapeError, nearest
from landscape.gradient import differentiable
from landscape.objective import Objective
from landscape.space import Space

Metric = Callable[[Tensor], Tensor]
KINDS = ("true", "empirical")


@dataclass(frozen=True)
class _Linearised:
    """Logits of a batch, J' u for a variable u, the tensors that it belongs to, and the metric."""

    logits: Tensor
    u: Tensor
    places: list[int]
    pulled: list[Tensor]
    metric: Metric


class _JacobianProduct(ModelOperator):
    """v -> sum over samples of J_n' M_n J_n v / N; the settings are those of the Hessian."""

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

    def describe(self) -> dict[str, Any]:
        """As the base class, with the batch size of the products and the share of graphs kept."""
        kept = {"product_batch_size": self.graphs.batch_size, "graphs_kept": self.graphs.kept}
        return {**super().describe(), **kept}

    @abstractmethod
    def _metric(self, logits: Tensor, rows: slice) -> Metric:
        """Of detached logits (n, ...): u -> M u, one sample at a time, not divided by N."""

    def _open(self, stack: ExitStack) -> None:
        super()._open(stack)
        stack.callback(self.graphs.clear)
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
        parts, before = [self._parts(v) for v in vectors], self.graphs.built
        for graph in self.graphs:
            for row, v in zip(found, parts, strict=True):
                if graph.pulled:
                    # J v = d((J' u) . v) / du, exact since J' u is linear in u
                    of_graph = [v[i] for i in graph.places]
                    (moved,) = torch.autograd.grad(graph.pulled, graph.u, of_graph, retain_graph=True)
                    # A v = J' M J v / N
                    back = (graph.metric(moved) / self.objective.n).to(graph.logits)
                    row += self._joined(
                        torch.autograd.grad(graph.logits, self._parameters, back, retain_graph=True, allow_unused=True)
                    )
        self.cost["forwards"] += self.graphs.built - before
        self.cost["gradients"] += self.graphs.built - before
        return found

    def _build(self, rows: slice) -> _Linearised:
        logits = self.objective.logits(rows)
        if logits.grad_fn is None:
            raise LandscapeError("the logits do not depend on the space's tensors through differentiable steps")
        u = torch.zeros_like(logits, requires_grad=True)
        pulled = torch.autograd.grad(logits, self._parameters, u, create_graph=True, allow_unused=True)
        used = [(i, g) for i, g in enumerate(pulled) if g is not None and g.requires_grad]
        return _Linearised(
            logits=logits,
            u=u,
            places=[i for i, _ in used],
            pulled=[g for _, g in used],
            metric=self._metric(logits.detach(), rows),
        )


class GaussNewton(_JacobianProduct):
    """v -> J' H_L J v, H_L the second derivative of the loss by the logits, for any loss (Schraudolph 2002).

    It is the Hessian without the curvature of the model itself: positive semidefinite where the loss is convex in the
    logits, and equal to the Hessian for a model that is linear in its weights. Parameters are those of
    :class:`landscape.curvature.hessian.Hessian`.
    """

    name = "gauss_newton"

    def _metric(self, logits: Tensor, rows: slice) -> Metric:
        leaf = logits.requires_grad_()
        (slope,) = torch.autograd.grad(self.objective.losses(leaf, rows).sum(), leaf, create_graph=True)
        if not slope.requires_grad:  # a loss that is linear in the logits
            return torch.zeros_like

        def curvature(u: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(slope, leaf, u.to(slope), retain_graph=True, allow_unused=True)
            return torch.zeros_like(u) if found is None else found

        return curvature


class Fisher(_JacobianProduct):
    """v -> F v with F the mean over samples of gradient outer products of log p(y | x).

    Parameters
    ----------
    objective, space, surrogate, batch_size, keep_bytes
        As for :class:`landscape.curvature.hessian.Hessian`.
    kind
        ``true``: y follows the model's own classes, which needs the default loss (cross entropy); it does not depend on
        the targets and equals the Gauss-Newton matrix. ``empirical``: y is the target, of any loss; no approximation of
        the Hessian in general (Kunstner et al. 2019).
    draws
        For ``true``: None takes the expectation over the classes exactly; a number draws that many classes a sample,
        the same for every product, so that F is an unbiased estimate of rank at most N * draws.
    seed
        Of the drawn classes.

    Raises
    ------
    LandscapeError
        For an unknown kind, draws for the empirical one, or the true one of another loss than cross entropy.
    """

    name = "fisher"

    def __init__(
        self,
        objective: Objective,
        space: Space,
        *,
        kind: Literal["true", "empirical"] = "true",
        draws: int | None = None,
        seed: int = 0,
        surrogate: bool = False,
        batch_size: int | None = None,
        keep_bytes: int | None = None,
    ) -> None:
        if kind not in KINDS:
            raise LandscapeError(f"expected kind to be one of {', '.join(KINDS)}, found {kind!r}{nearest(kind, KINDS)}")
        if draws is not None and (kind != "true" or draws < 1):
            raise LandscapeError(f"expected draws of at least 1 and kind='true', found {draws} and {kind!r}")
        if kind == "true" and objective.loss is not None:
            raise LandscapeError("expected the default loss, whose classes the true Fisher draws; found another loss")
        super().__init__(objective, space, surrogate=surrogate, batch_size=batch_size, keep_bytes=keep_bytes)
        self.kind, self.draws, self.seed = kind, draws, seed
        self.name = f"fisher_{kind}"

    def describe(self) -> dict[str, Any]:
        """As the base class, with the kind and how the classes are drawn."""
        drawn = {} if self.kind == "empirical" else {"classes": "exact" if self.draws is None else "drawn"}
        return {**super().describe(), "kind": self.kind, **drawn, "draws": self.draws, "fisher_seed": self.seed}

    def _metric(self, logits: Tensor, rows: slice) -> Metric:
        if self.kind == "empirical":
            leaf = logits.requires_grad_()
            (slope,) = torch.autograd.grad(self.objective.losses(leaf, rows).sum(), leaf)
            return _outer(slope.reshape(len(slope), 1, -1))
        probabilities = logits.softmax(dim=1)
        if self.draws is None:
            # E_y (p - e_y)(p - e_y)' = diag(p) - p p'
            return lambda u: probabilities * (u - (probabilities * u).sum(dim=1, keepdim=True))
        chosen = self._drawn(probabilities, rows)
        unit = torch.nn.functional.one_hot(chosen, probabilities.shape[1]).to(probabilities)
        return _outer((probabilities[:, None] - unit) / self.draws**0.5)

    def _drawn(self, probabilities: Tensor, rows: slice) -> Tensor:
        # (n, draws) classes; a generator a sample, so that they depend neither on the batches nor on their order
        assert self.draws is not None
        found = []
        for index, p in enumerate(probabilities.cpu().double(), rows.start):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
            found.append(torch.multinomial(p, self.draws, replacement=True, generator=generator))
        return torch.stack(found).to(probabilities.device)


def _outer(slopes: Tensor) -> Metric:
    """The metric sum over draws of r r', for r = slopes (n, draws, C)."""

    def apply(u: Tensor) -> Tensor:
        flat = u.reshape(len(u), -1).to(slopes)
        weights = torch.einsum("ndc,nc->nd", slopes, flat)
        return torch.einsum("ndc,nd->nc", slopes, weights).reshape(u.shape)

    return apply
