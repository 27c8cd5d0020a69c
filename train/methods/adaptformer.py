"""AdaptFormer: a bottleneck beside the MLP, ``x + DP(mlp(LN x)) + s up(dropout(relu(down(x))))``.

Chen et al. 2022, as varied in the low-bit paper (PAPER 1.5): no biases, the scale chosen per task. Its input is the
un-normalised residual stream after attention, and it is not under drop path. The tensors are
``blocks.i.adapter.down.weight`` and ``blocks.i.adapter.up.weight``.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.models.vision_transformer import Block
from torch import nn

from train.methods import Method
from train.methods._parts import LowRank, blocks


class AdaptFormerBlock(Block):
    """timm's standard block with a bottleneck beside its MLP."""

    adapter: LowRank
    adapter_scale: float

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Map tokens (B, N, d) to (B, N, d); further arguments (a mask) go to attention."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), *args, **kwargs)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))) + self.adapter_scale * self.adapter(x)


def insert(model: nn.Module, *, dim: int, bits: int, quantizer: str, scale: float) -> None:
    """Turn each block into an ``AdaptFormerBlock``, in place."""
    for block in blocks(model):
        width = cast(nn.LayerNorm, block.norm2).weight.numel()
        block.adapter = LowRank(width, dim, width, bits=bits, quantizer=quantizer, act=nn.ReLU())
        block.__class__ = AdaptFormerBlock
        cast(AdaptFormerBlock, block).adapter_scale = scale


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the bottlenecks' matrices."""
    return [name for name, _ in model.named_parameters() if ".adapter." in name]


def parameters(width: int, depth: int, dim: int) -> int:
    """2 d h L: a matrix down and one up, no biases."""
    return 2 * width * dim * depth


METHOD = Method(
    name="adaptformer",
    title="AdaptFormer",
    dim_letter="h",
    parameters=parameters,
    insert=insert,
    adapter_names=adapter_names,
)
