"""Tiny networks, one for each thing a landscape must cope with, and snapshots of everything it must leave alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CLASSES = 4


class Mlp(nn.Module):
    """Linear, ReLU, dropout, linear: 5 -> 7 -> 4."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.up, self.drop, self.down = nn.Linear(5, 7), nn.Dropout(dropout), nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.drop(self.up(x).relu()))


class ConvNet(nn.Module):
    """Convolution and BatchNorm on (N, 2, 6, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean(dim=(2, 3)))


class TinyVit(nn.Module):
    """Class token, positions, a norm, a 0-d scale, an adapter of dim 1, a frozen backbone weight; takes a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token, self.pos_embed = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 5, 6))
        self.norm, self.mix, self.head = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.down, self.up = nn.Linear(6, 1, bias=False), nn.Linear(1, 6, bias=False)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.gamma = nn.Parameter(torch.rand(1, 1, 6))
        self.mix.weight.requires_grad_(False)

    def forward(self, x: Tensor, shift: Tensor) -> dict[str, Tensor]:
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        tokens = tokens + self.gamma * self.mix(self.norm(tokens)) + self.scale * self.up(self.down(tokens))
        return {"logits": self.head(tokens.mean(dim=1)) + shift[:, None]}


class Tied(nn.Module):
    """The same weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


def seeded(kind: type[nn.Module], seed: int = 0, **options: Any) -> nn.Module:
    """A network of a seed, made without touching the caller's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(**options)


def data(kind: type[nn.Module], n: int = 30, seed: int = 1) -> tuple[Any, Tensor]:
    """Inputs and labels for a network of this kind."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=g)
    if kind is ConvNet:
        return torch.randn(n, 2, 6, 6, generator=g), labels
    if kind is TinyVit:
        return {"x": torch.randn(n, 4, 6, generator=g), "shift": torch.randn(n, generator=g)}, labels
    return torch.randn(n, 5, generator=g), labels


def everything(model: nn.Module) -> dict[str, Any]:
    """All that NUMERICS 3 says must stay, as comparable values (tensors as bytes)."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "bits": {name: t.detach().reshape(-1).view(torch.uint8).tolist() for name, t in tensors.items()},
        "objects": {name: id(t) for name, t in tensors.items()},
        "requires_grad": {name: t.requires_grad for name, t in tensors.items()},
        "grad": {n: None if p.grad is None else (id(p.grad), p.grad.tolist()) for n, p in model.named_parameters()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: len(module._forward_hooks) for name, module in model.named_modules()},
        "rng": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002
        "globals": (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()),
    }
