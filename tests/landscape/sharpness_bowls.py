"""Models whose loss is an exact quadratic of known Hessian, and the exact answers about them, without torch."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from landscape import Objective, Policy, Space


class Linear(nn.Module):
    """y = W x, one matrix and nothing else, in float64."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.map = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
        with torch.no_grad():
            self.map.weight.copy_(torch.from_numpy(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)


def half_square(out: Tensor, target: Tensor) -> Tensor:
    """Half the squared distance, per sample."""
    return 0.5 * (out - target).pow(2).sum(dim=1)


def bowl(
    rows: int = 1, k: int = 6, *, n: int = 24, slope: float = 0.0, diagonal: bool = False, seed: int = 0
) -> tuple[Objective, Space, np.ndarray, np.ndarray, np.ndarray]:
    """Least squares with every row of W a filter: objective, space, H (k, k), g (rows, k), W (rows, k).

    The rise of a move M is sum over rows of g_i' m_i + m_i' H m_i / 2, with H = mean x x' and g = H (W - W*).
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, k)) * np.linspace(0.5, 2.0, k)
    if diagonal:  # orthogonal columns
        x = np.linalg.qr(x)[0] * np.linspace(1.0, 3.0, k) * np.sqrt(n)
    weight = rng.normal(size=(rows, k)) + 0.3
    best = weight + slope * rng.normal(size=(rows, k))
    model = Linear(weight)
    objective = Objective(model, torch.from_numpy(x), torch.from_numpy(x @ best.T), loss=half_square, batch_size=10)
    hessian = x.T @ x / n
    return objective, Space(model, ["map.weight"]), hessian, (weight - best) @ hessian, weight


def rise(move: np.ndarray, hessian: np.ndarray, gradient: np.ndarray) -> float:
    """Of a move (rows, k)."""
    return float((gradient * move).sum() + 0.5 * np.einsum("ri,ij,rj->", move, hessian, move))


def most_in_ball(hessian: np.ndarray, gradient: np.ndarray, radius: float) -> float:
    """The most of g'd + d'Hd / 2 over ||d|| <= radius, for positive definite H: (lambda - H) d = g on the sphere."""
    values, vectors = np.linalg.eigh(hessian)
    g = vectors.T @ gradient
    if np.linalg.norm(g) < 1e-14:
        return 0.5 * values[-1] * radius**2
    top = values[-1]

    def excess(above: float) -> float:
        return float(np.linalg.norm(g / (top + above - values)) - radius)

    above = brentq(excess, 1e-12, 1e6, xtol=1e-15)
    d = g / (top + above - values)
    return float(g @ d + 0.5 * d @ (values * d))


class TwoWeights(nn.Module):
    """A smooth, not quadratic loss of two weights: logits (0, tanh(a x) + b x^2 + a b)."""

    def __init__(self, a: float = 0.8, b: float = -0.5) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[a, b]], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.w[0]
        score = (a * x).tanh() + b * x**2 + a * b
        return torch.stack([torch.zeros_like(score), score], dim=1)


def two_weights(policy: Policy = Policy()) -> tuple[Objective, Space]:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(20, generator=g, dtype=torch.float64)
    model = TwoWeights()
    return Objective(model, x, (x > 0.2).long()), Space(model, ["w"], policy=policy)


def losses_of_two(ab: np.ndarray, objective: Objective) -> np.ndarray:
    """Mean loss at each row of (M, 2) weights, by numpy."""
    x = objective.inputs["0"].numpy()
    y = objective.targets.numpy()
    a, b = ab[:, :1], ab[:, 1:]
    score = np.tanh(a * x) + b * x**2 + a * b
    return (np.logaddexp(0, score) - y * score).mean(axis=1)
