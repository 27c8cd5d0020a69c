"""Random subspace: all dense matrices move together in ``dim`` directions, ``theta = theta_0 + s P z``; z is trained.

Li, Farkhoor, Liu and Yosinski 2018, with a sparse P (count sketch): each of the D weights belongs to one coordinate of
z with a random sign, and each column is scaled to unit norm. The columns have no row in common, so P'P = I.

A weight's place is the i-th number of the Philox generator whose key is the SHA-256 of the seed and the layer's name,
so P is the same on every machine, for any number of threads, and is stored nowhere: a file holds z alone. The layers
share one z, which has the first of them in its name: ``patch_embed.proj.subspace.z.weight`` of a ViT.
"""

from __future__ import annotations

import hashlib
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quant.fake import QuantLinear, fake_quantize
from quant.quantizers import get
from train.errors import TrainError
from train.methods import Method, head_names
from train.methods._parts import linear


class Coordinates(nn.Module):
    """The coordinates z, ``z.weight`` (1, dim), and how many of the network's weights each of them moves.

    Fewer bits than 32 quantise z in every forward pass, as any other method's matrices.
    """

    counts: Tensor

    def __init__(self, dim: int, *, bits: int, quantizer: str, scale: float) -> None:
        super().__init__()
        self.z = linear(dim, 1, bits=bits, quantizer=quantizer)
        if bits == 32:
            nn.init.zeros_(self.z.weight)
        else:  # zeros have no deviation to quantise by; as in the other methods
            nn.init.trunc_normal_(self.z.weight, std=0.001, a=-0.002, b=0.002)
        if isinstance(self.z, QuantLinear):
            self.z.reset_step()
        self.scale = scale
        self.register_buffer("counts", torch.zeros(dim, dtype=torch.int64), persistent=False)

    def signed(self) -> Tensor:
        """What a weight of either sign moves by, for each coordinate: (2 dim,)."""
        z = self.z.weight
        if isinstance(self.z, QuantLinear):
            z = fake_quantize(z, get(self.z.quantizer, self.z.bits), getattr(self.z, "step", None))
        # a column of n entries of +-1 has the norm sqrt(n)
        step = self.scale * z.flatten() / self.counts.clamp(min=1).to(z.dtype).sqrt()
        return torch.cat([step, -step])


class Moved(nn.Module):
    """What layers in the subspace add to their kind: ``place`` is each weight's coordinate, plus dim where it falls."""

    weight: Tensor
    subspace: Coordinates
    place: Tensor

    def moved(self) -> Tensor:
        """The dense matrix: theta_0 + s P z."""
        return self.weight + self.subspace.signed().index_select(0, self.place).view_as(self.weight)


class SubspaceLinear(Moved, nn.Linear):
    """A linear layer whose matrix moves in the subspace."""

    def forward(self, input: Tensor) -> Tensor:
        """The linear layer at its moved matrix."""
        return F.linear(input, self.moved(), self.bias)


class SubspaceConv2d(Moved, nn.Conv2d):
    """A convolution whose kernels move in the subspace."""

    def forward(self, input: Tensor) -> Tensor:
        """The convolution at its moved kernels."""
        return self._conv_forward(input, self.moved(), self.bias)


KINDS: dict[type, type] = {nn.Linear: SubspaceLinear, nn.Conv2d: SubspaceConv2d}
"""Layers that move, by their exact type: a subclass may use its weight in a way of its own."""


def insert(model: nn.Module, *, dim: int, bits: int, quantizer: str, scale: float) -> None:
    """Put every linear layer and convolution but the head into one subspace, in place.

    P is drawn from the seed that torch's global generator started from, not from where that stands by now.

    Raises
    ------
    TrainError
        If there is no such layer, or there are fewer weights than coordinates.
    """
    heads = head_names(model)
    layers = {
        name: module
        for name, module in model.named_modules()
        if type(module) in KINDS and f"{name}.weight" not in heads
    }
    weights = sum(layer.weight.numel() for layer in layers.values())
    if weights < dim:
        found = f"{weights} weights in {len(layers)} linear layers and convolutions of {type(model).__name__}"
        raise TrainError(f"a subspace of dimension {dim} needs at least as many weights, found {found}")
    shared = Coordinates(dim, bits=bits, quantizer=quantizer, scale=scale)
    for name, layer in layers.items():
        place = places(torch.initial_seed(), name, layer.weight.numel(), dim)
        shared.counts += torch.from_numpy(np.bincount(place % dim, minlength=dim))
        layer.register_buffer("place", torch.from_numpy(place), persistent=False)
        layer.add_module("subspace", shared)
        layer.__class__ = KINDS[type(layer)]


def places(seed: int, name: str, weights: int, dim: int) -> np.ndarray:
    """For each weight of a layer j where P has +1 in column j, and dim + j where it has -1: (weights,) int32."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    drawn = np.random.Philox(key=key).random_raw(weights)
    # j = floor(u dim) of the upper 32 bits as u in [0, 1); the sign is the lowest bit
    j = ((drawn >> np.uint64(32)) * np.uint64(dim)) >> np.uint64(32)
    return (j + (drawn & np.uint64(1)) * np.uint64(dim)).astype(np.int32)


def adapter_names(model: nn.Module) -> list[str]:
    """Name of z, and of its step where a quantiser learns one."""
    return [name for name, _ in model.named_parameters() if ".subspace.z." in name]


def touched(model: nn.Module) -> list[str]:
    """Names of the matrices and kernels that move."""
    return [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Moved)]


def fold(model: nn.Module) -> None:
    """theta_0 + s P z into every layer, and the subspace gone; in place."""
    for layer in [m for m in model.modules() if isinstance(m, Moved)]:
        with torch.no_grad():
            layer.weight.copy_(layer.moved())
        del layer.subspace, layer.place
        plain = next(kind for kind, moved in KINDS.items() if type(layer) is moved)
        cast(nn.Module, layer).__class__ = plain


def parameters(width: int, depth: int, dim: int) -> int:
    """The dimension itself."""
    return dim


METHOD = Method(
    name="subspace",
    title="Random subspace",
    dim_letter="d",
    linear=True,
    seeded=True,
    parameters=parameters,
    insert=insert,
    adapter_names=adapter_names,
    fold=fold,
    touched=touched,
)
