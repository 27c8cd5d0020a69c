"""LoRA on queries and values: ``q += s up(dropout(down(x)))``, likewise ``v``; x is the normalised input of attention.

Hu et al. 2022, as varied in the low-bit paper (PAPER 1.5): dropout between the matrices and no alpha / r. The dense
matrix keeps its name ``blocks.i.attn.qkv.weight``; beside it lie ``lora_q.down``, ``lora_q.up``, ``lora_v.down`` and
``lora_v.up``.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from train.errors import TrainError
from train.methods import Method
from train.methods._parts import LowRank, blocks


class LoraQKV(nn.Linear):
    """The fused projection to queries, keys and values, with a low-rank change of queries and values."""

    lora_q: LowRank
    lora_v: LowRank
    lora_scale: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map tokens (..., d) to (..., 3 d)."""
        q, k, v = F.linear(x, self.weight, self.bias).chunk(3, dim=-1)
        return torch.cat((q + self.lora_scale * self.lora_q(x), k, v + self.lora_scale * self.lora_v(x)), dim=-1)


def insert(model: nn.Module, *, dim: int, bits: int, quantizer: str, scale: float) -> None:
    """Turn each block's ``attn.qkv`` into a ``LoraQKV``, in place; the dense tensors stay the same objects.

    Raises
    ------
    TrainError
        If the blocks are not timm's, or their attention has no fused linear ``qkv``.
    """
    for i, block in enumerate(blocks(model)):
        qkv = getattr(block.attn, "qkv", None)
        if type(qkv) is not nn.Linear or qkv.out_features % 3:
            where = f"{type(block.attn).__name__} of blocks.{i}"
            raise TrainError(f"LoRA expects a linear attn.qkv, found {type(qkv).__name__} in {where}")
        outputs = qkv.out_features // 3
        for name in ("lora_q", "lora_v"):
            branch = LowRank(qkv.in_features, dim, outputs, bits=bits, quantizer=quantizer, act=nn.Identity())
            qkv.add_module(name, branch)
        qkv.__class__ = LoraQKV
        cast(LoraQKV, qkv).lora_scale = scale


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the low-rank factors."""
    return [name for name, _ in model.named_parameters() if ".lora_q." in name or ".lora_v." in name]


def touched(model: nn.Module) -> list[str]:
    """Names of the dense matrices that the factors are added to."""
    return [name for name, _ in model.named_parameters() if name.endswith(".attn.qkv.weight")]


def fold(model: nn.Module) -> None:
    """W0 + s B A into the rows of queries and values, and the factors gone; in place."""
    for qkv in [m for m in model.modules() if isinstance(m, LoraQKV)]:
        with torch.no_grad():
            rows_q, _, rows_v = qkv.weight.chunk(3, dim=0)
            rows_q += qkv.lora_scale * (qkv.lora_q.up.weight @ qkv.lora_q.down.weight)
            rows_v += qkv.lora_scale * (qkv.lora_v.up.weight @ qkv.lora_v.down.weight)
        del qkv.lora_q, qkv.lora_v, qkv.lora_scale
        cast(nn.Linear, qkv).__class__ = nn.Linear


def parameters(width: int, depth: int, dim: int) -> int:
    """4 d r L: two matrices each for queries and values."""
    return 4 * width * dim * depth


METHOD = Method(
    name="lora",
    title="LoRA",
    dim_letter="r",
    linear=True,
    parameters=parameters,
    insert=insert,
    adapter_names=adapter_names,
    fold=fold,
    touched=touched,
)
