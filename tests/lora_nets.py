"""Small networks with adapters in float64, and the same function with its low-rank factors in another gauge."""

from __future__ import annotations

import copy

import torch
from timm.models.vision_transformer import VisionTransformer

from train import methods
from train.methods._parts import LowRank


def adapted(method: str = "lora", *, dim: int = 4, bits: int = 32, stir: bool = True) -> VisionTransformer:
    """A small network in float64 with an adapter whose tensors are no initial values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5)
        methods.get(method).apply(model, dim=dim, bits=bits, scale=1.3)
        for name, w in model.named_parameters():
            if stir and name in methods.get(method).adapter_names(model):
                w.data = torch.randn(w.shape) * 0.4
    return model.double().eval()


def pairs(model) -> list[LowRank]:
    return [m for m in model.modules() if isinstance(m, LowRank)]


def regauged(model, seed: int = 0):
    """The same function with every pair in another gauge: B G^-1 and G A for a random invertible G."""
    other, g = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for pair in pairs(other):
            r = pair.down.weight.shape[0]
            matrix = torch.randn(r, r, generator=g, dtype=torch.float64) + 2 * torch.eye(r, dtype=torch.float64)
            pair.down.weight.copy_(matrix @ pair.down.weight)
            pair.up.weight.copy_(pair.up.weight @ torch.linalg.inv(matrix))
    return other
