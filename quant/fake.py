"""Quantisation-aware training: weights quantised in the forward pass, the gradient straight through (PAPER 1.3).

A :class:`QuantLinear` keeps its latent weight under the name ``weight`` as a plain parameter: it can be saved, copied,
pickled and optimised like any linear layer's.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from quant.quantizers import get
from quant.quantizers.base import Grid, Quantizer


def fake_quantize(w: Tensor, quantizer: Quantizer) -> Tensor:
    """The values that ``w`` is stored with, differentiable by the exact straight-through gradient of PAPER 1.3.

    Forward: ``grid.values(grid.codes(w))`` with ``grid = quantizer.fit(w)``, bit for bit, and its errors. Shape and
    dtype are those of ``w``. A second derivative raises: through a straight-through estimator it is no curvature of
    the loss.
    """
    return _FakeQuantize.apply(w, quantizer)


class QuantLinear(nn.Linear):
    """A linear layer whose weight is quantised as a whole in every pass; ``weight`` is the latent one, the bias stays.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As in ``torch.nn.Linear``; no bias by default (PAPER 1.2).
    bits
        1 to 8.
    quantizer
        A name of :func:`quant.quantizers.names`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        bits: int,
        quantizer: str = "gaussian_l1",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        get(quantizer, bits)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.bits = bits
        self.quantizer = quantizer

    def forward(self, input: Tensor) -> Tensor:
        """The layer with the values that its weight is stored with."""
        return nn.functional.linear(input, fake_quantize(self.weight, get(self.quantizer, self.bits)), self.bias)

    def grid(self) -> Grid:
        """The grid of the latent weight as it is now."""
        return get(self.quantizer, self.bits).fit(self.weight)

    def deployed(self) -> nn.Linear:
        """A plain linear layer that computes the same, with the quantised values as its weight; it shares no tensor."""
        weight = self.weight
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta", dtype=weight.dtype)
        with torch.no_grad():
            baked = fake_quantize(weight, get(self.quantizer, self.bits))
        layer.weight = nn.Parameter(baked, requires_grad=weight.requires_grad)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """What ``print`` shows of the layer."""
        return f"{super().extra_repr()}, bits={self.bits}, quantizer={self.quantizer}"


def bake(model: nn.Module) -> nn.Module:
    """A copy of the model with each :class:`QuantLinear` deployed; names of modules and tensors are unchanged."""
    model = copy.deepcopy(model)
    plain: dict[nn.Module, nn.Module] = {}  # a layer used in two places stays one layer
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if isinstance(child, QuantLinear):
                plain.setdefault(child, child.deployed())
                module._modules[name] = plain[child]
    return model.deployed() if isinstance(model, QuantLinear) else model


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, quantizer: Quantizer) -> Tensor:
        grid = quantizer.fit(w)
        codes = grid.codes_of_finite(w)
        ctx.grid = grid
        ctx.save_for_backward(w, codes)
        return grid.values(codes).to(w.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        w, codes = ctx.saved_tensors
        return ctx.grid.backward(grad, w, codes).to(w.dtype), None
