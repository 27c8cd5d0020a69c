"""What the methods are made of: a vision transformer's blocks, the low-rank branch, the low-bit head."""

from __future__ import annotations

from typing import cast

import torch
from timm.models.vision_transformer import Block
from torch import nn

from quant.fake import QuantLinear
from train.errors import TrainError

DROPOUT = 0.1
"""Between the down and the up matrix (PAPER 1.5)."""


class LowRank(nn.Module):
    """``up(dropout(act(down(x))))`` without biases: AdaptFormer's branch with a ReLU, LoRA's without.

    ``bits`` 32 makes plain linear layers, fewer make layers that are quantised in every forward pass.
    """

    def __init__(self, inputs: int, dim: int, outputs: int, *, bits: int, quantizer: str, act: nn.Module) -> None:
        super().__init__()
        self.down = linear(inputs, dim, bits=bits, quantizer=quantizer)
        self.act = act
        self.dropout = nn.Dropout(DROPOUT)
        self.up = linear(dim, outputs, bits=bits, quantizer=quantizer)
        if bits == 32:
            nn.init.zeros_(self.up.weight)
        else:  # zeros have no deviation to quantise by; PAPER 1.5
            nn.init.trunc_normal_(self.up.weight, std=0.001, a=-0.002, b=0.002)
            cast(QuantLinear, self.up).reset_step()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens (..., inputs) to (..., outputs)."""
        return self.up(self.dropout(self.act(self.down(x))))


def linear(inputs: int, outputs: int, *, bits: int, quantizer: str) -> nn.Linear:
    """A linear layer without bias at that many bits, with torch's default initial values."""
    if bits == 32:
        return nn.Linear(inputs, outputs, bias=False)
    return QuantLinear(inputs, outputs, bias=False, bits=bits, quantizer=quantizer)


def quantise_head(model: nn.Module, *, bits: int, quantizer: str) -> None:
    """Replace ``model.head`` by a low-bit layer without bias (the paper's "bi-head" at 1 bit), in place.

    Raises
    ------
    TrainError
        If the network's head is no linear layer.
    """
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear):
        raise TrainError(f"a low-bit head needs a linear layer named head, found {type(head).__name__}")
    model.head = linear(head.in_features, head.out_features, bits=bits, quantizer=quantizer)


def blocks(model: nn.Module) -> list[Block]:
    """The transformer blocks of a timm ViT.

    Raises
    ------
    TrainError
        If there are none, or one is not timm's standard ``Block``.
    """
    found, name = getattr(model, "blocks", None), type(model).__name__
    others = "methods for other networks: full, linear, subspace"
    if found is None or len(found) == 0:
        raise TrainError(f"expected a timm vision transformer made of Block, found {name}; {others}")
    for i, block in enumerate(found):
        if type(block) is not Block:
            raise TrainError(
                f"expected timm's standard Block, found {type(block).__name__} as blocks.{i} of {name}; {others}"
            )
    return list(found)
