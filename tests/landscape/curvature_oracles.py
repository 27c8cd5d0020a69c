"""Networks, explicit matrices and dense second derivatives for the curvature's tests.

The dense ones are torch.autograd's, column by column: torch.func.hessian is wrong for layer norm (torch 2.15; not
symmetric, and far from differences of gradients), because its batching rule of that backward pass is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from landscape_nets import CLASSES, ConvNet, Mlp, Tied, TinyVit, data, seeded
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

from landscape.curvature import Operator

__all__ = ["CLASSES", "NETS", "Bowl", "Explicit", "case", "dense_hessian", "dense_jacobian", "symmetric"]


class Attention(nn.Module):
    """One head of the fused attention function with GELU and layer norm, on tokens (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(1, 4), nn.LayerNorm(4)
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x[:, :, None])
        q, k, v = self.qkv(self.norm(tokens))[:, None].chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return self.head(F.gelu(tokens + mixed).mean(dim=1))


class Partly(nn.Module):
    """A frozen first layer, a tensor that nothing uses, and one that enters linearly."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, CLASSES)
        self.unused, self.shift = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(CLASSES))
        self.first.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()) + self.shift


class Bowl(nn.Module):
    """Weights w (P,) as output for every sample: with the loss of ``bowl_loss`` the Hessian is the given matrix."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x), -1)


NETS = {"mlp": Mlp, "conv": ConvNet, "vit": TinyVit, "tied": Tied, "attention": Attention, "partly": Partly}


def case(name: str, n: int = 9) -> tuple[nn.Module, Any, Tensor]:
    """A network in float64, its inputs and labels."""
    kind = NETS[name]
    model = seeded(kind).double().eval()
    x, y = data(kind, n)
    return model, ({k: v.double() for k, v in x.items()} if isinstance(x, dict) else x.double()), y


def parts(model: nn.Module, names: Sequence[str]) -> tuple[Tensor, Callable[[Tensor], dict[str, Tensor]]]:
    """The named tensors as one vector, and a function from such a vector to tensors."""
    tensors = [dict(model.named_parameters())[name].detach() for name in names]

    def unflatten(vector: Tensor) -> dict[str, Tensor]:
        pieces = vector.split([t.numel() for t in tensors])
        return {name: v.reshape(t.shape) for name, v, t in zip(names, pieces, tensors, strict=True)}

    return torch.cat([t.reshape(-1) for t in tensors]), unflatten


def logits_of(model: nn.Module, x: Any, weights: dict[str, Tensor]) -> Tensor:
    """The network's output at other weights."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        out = functional_call(model, weights, (), x) if isinstance(x, dict) else functional_call(model, weights, (x,))
    return out["logits"] if isinstance(out, dict) else out


def dense_hessian(
    model: nn.Module,
    x: Any,
    y: Tensor,
    names: Sequence[str],
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Tensor:
    """The whole Hessian of the mean loss by automatic differentiation of the whole data at once, (P, P)."""
    vector, unflatten = parts(model, names)
    return hessian(lambda v: loss(logits_of(model, x, unflatten(v)), y), vector)


def dense_jacobian(model: nn.Module, x: Any, names: Sequence[str]) -> Tensor:
    """Derivatives of all logits, (N, C, P)."""
    vector, unflatten = parts(model, names)
    return jacobian(lambda v: logits_of(model, x, unflatten(v)), vector)


class Explicit(Operator):
    """A matrix as an operator."""

    name = "explicit"

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(len(matrix), matrix.dtype)
        self.matrix = matrix

    def _products(self, vectors: Tensor) -> Tensor:
        return vectors @ self.matrix


def symmetric(values: Sequence[float], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A matrix with these eigenvalues and random eigenvectors."""
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64))
    return ((q * torch.tensor(list(values), dtype=torch.float64)) @ q.T).to(dtype)
