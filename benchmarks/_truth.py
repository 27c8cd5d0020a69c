"""What is right: products by forward over reverse differentiation, the whole Hessian of a small net, and what follows.

Nothing here uses ``landscape``: a pair (lambda, v) is an eigenpair when ||H v - lambda v|| is small, whoever found it.
P parameters, m probes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks._curvature_tools import vectors_of

_ROWS = 64
PROBES = 16


def products(model: nn.Module, names: Sequence[str], inputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """V -> H v for (P,), of the mean cross entropy by the named tensors, in the model's order."""
    model.eval()
    everything = {name: t.detach() for name, t in [*model.named_parameters(), *model.named_buffers()]}
    moving = {name: everything[name] for name, _ in model.named_parameters() if name in names}
    sizes = [t.numel() for t in moving.values()]

    def multiply(v: Tensor) -> Tensor:
        parts = v.split(sizes)
        tangents = {name: part.view_as(t) for (name, t), part in zip(moving.items(), parts, strict=True)}
        total = torch.zeros_like(v)
        for x, y in zip(inputs.split(_ROWS), targets.split(_ROWS), strict=True):

            def loss(tensors: dict[str, Tensor], x: Tensor = x, y: Tensor = y) -> Tensor:
                logits = functional_call(model, {**everything, **tensors}, (x,))
                return nn.functional.cross_entropy(logits, y, reduction="sum") / len(targets)

            # H v = d/dt grad(w + t v) at t = 0
            with sdpa_kernel(SDPBackend.MATH):
                _, derivative = jvp(grad(loss), (moving,), (tangents,))
            total += torch.cat([derivative[name].reshape(-1) for name in moving])
        return total

    return multiply


def dense(model: nn.Module, names: Sequence[str], inputs: Tensor, targets: Tensor) -> Tensor:
    """The Hessian itself, (P, P) float64, column by column."""
    size = sum(p.numel() for name, p in model.named_parameters() if name in names)
    multiply = products(model, names, inputs, targets)
    matrix = torch.stack([multiply(row) for row in torch.eye(size)]).double()
    return (matrix + matrix.T) / 2


@dataclass(frozen=True, kw_only=True)
class Top:
    """Eigenvalues that an answer must have: the ``algebraic``ally largest, and the largest in ``magnitude``; (k,)."""

    algebraic: Tensor
    magnitude: Tensor

    @property
    def scale(self) -> float:
        """The largest magnitude."""
        return float(self.magnitude.abs().max())


def residuals(multiply: Callable[[Tensor], Tensor], values: Tensor, vectors: Tensor) -> Tensor:
    """(k,) ||H v - lambda v|| for v of unit length."""
    found = []
    for value, v in zip(values.double(), vectors, strict=True):
        unit = v / v.double().norm().float()
        found.append((multiply(unit).double() - value * unit.double()).norm())
    return torch.stack(found)


def wrong_pairs(
    top: Top, multiply: Callable[[Tensor], Tensor], values: Tensor, vectors: Tensor, tolerance: float
) -> tuple[str, float]:
    """What is wrong with five eigenpairs, nothing if they are right, and the largest residual over the scale.

    Right: every residual and every distance to the true value is at most ``tolerance`` times the largest magnitude. The
    end that suits the answer counts, algebraic or magnitude: tools do not all say which they mean.
    """
    if not bool(torch.isfinite(values).all()):
        return "not finite", math.nan
    away = min(_distance(values, top.algebraic), _distance(values, top.magnitude)) / top.scale
    left = float(residuals(multiply, values, vectors).max()) / top.scale
    if away > tolerance:
        return f"an eigenvalue is off by {away:.1e} lambda_max", left
    if left > tolerance:
        return f"a residual is {left:.1e} lambda_max", left
    return "", left


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean eigenvalue and mean squared eigenvalue with their standard errors, and the largest eigenvalue."""

    first: float
    first_se: float
    second: float
    second_se: float
    largest: float


def moments(multiply: Callable[[Tensor], Tensor], size: int, largest: float) -> Moments:
    """From 16 vectors z of random signs: z' H z / P and ||H z||^2 / P (Hutchinson 1990)."""
    first, second = [], []
    for z in vectors_of(12345, PROBES, size).sign():
        image = multiply(z).double()
        first.append(float(z.double() @ image) / size)
        second.append(float(image @ image) / size)
    means = [(sum(x) / PROBES, float(torch.tensor(x).std()) / math.sqrt(PROBES)) for x in (first, second)]
    return Moments(first=means[0][0], first_se=means[0][1], second=means[1][0], second_se=means[1][1], largest=largest)


def wrong_density(truth: Moments, nodes: list[Tensor], weights: list[Tensor]) -> str:
    """What is wrong with the quadratures of some probes, nothing if they are right."""
    if any(x.shape != w.shape for x, w in zip(nodes, weights, strict=True)):
        return f"weights {tuple(weights[0].shape)} for nodes {tuple(nodes[0].shape)}"
    if any(x.is_complex() or w.is_complex() for x, w in zip(nodes, weights, strict=True)):
        return "complex eigenvalues of a symmetric matrix"
    sums = torch.stack([w.double().sum() for w in weights])
    if float((sums - 1).abs().max()) > 1e-3:
        return f"weights sum to {float(sums.min()):.4g} to {float(sums.max()):.4g}, not to 1"
    draws = [[float((w.double() * x.double() ** power).sum()) for x, w in zip(nodes, weights, strict=True)]
             for power in (1, 2)]  # fmt: skip
    for name, found, true, se in (
        ("mean", draws[0], truth.first, truth.first_se),
        ("second moment", draws[1], truth.second, truth.second_se),
    ):
        mean = sum(found) / len(found)
        # a single probe is as uncertain as a single one of ours
        allowed = 4 * math.hypot(se, se * math.sqrt(PROBES / len(found)))
        if abs(mean - true) > allowed:
            return f"the {name} is {mean:.4g}, true {true:.4g} +- {se:.1g}"
    highest = max(float(x.max()) for x in nodes)
    if abs(highest - truth.largest) > 0.01 * abs(truth.largest):
        return f"the outermost node is {highest:.4g}, the largest eigenvalue {truth.largest:.4g}"
    return ""


def _distance(values: Tensor, true: Tensor) -> float:
    ordered = values.double().sort(descending=True).values
    return float((ordered - true.double()[: len(values)].sort(descending=True).values).abs().max())


def relative(found: Tensor, true: Tensor) -> float:
    """||found - true|| / ||true||."""
    return float((found.double() - true.double()).norm() / true.double().norm())
