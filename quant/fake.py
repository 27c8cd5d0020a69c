"""Quantisation-aware training: weights quantised in the forward pass, the gradient straight through (PAPER 1.3).

A :class:`QuantLinear` keeps its latent weight under the name ``weight`` as a plain parameter: it can be saved, copied,
pickled and optimised like any linear layer's. So can the step of a quantiser that learns it, ``step``.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from quant.errors import QuantError
from quant.quantizers import get
from quant.quantizers.base import Grid, Quantizer
from quant.quantizers.lsq import Lsq


def fake_quantize(w: Tensor, quantizer: Quantizer, step: Tensor | None = None) -> Tensor:
    """The values that ``w`` is stored with, differentiable by the quantiser's exact straight-through gradient.

    Forward: ``grid.values(grid.codes(w))`` with ``grid = quantizer.fit(w)``, bit for bit, and its errors. Shape and
    dtype are those of ``w``. ``step``: of a quantiser that learns its step, the steps (G,) to use in place of fitted
    ones; they get their own gradient. A second derivative raises: through a straight-through estimator it is no
    curvature of the loss.

    Raises
    ------
    QuantError
        If the quantiser has no step to learn and is given one; as of ``trained`` where a gradient is asked for.
    """
    if not quantizer.trains and torch.is_grad_enabled() and w.requires_grad:
        trained(quantizer.name, quantizer.bits)
    if step is not None:
        if not isinstance(quantizer, Lsq):
            raise QuantError(f"expected no step: {quantizer.name} has none to learn")
        return _LearnedStep.apply(w, step, quantizer)
    return _FakeQuantize.apply(w, quantizer)


def trained(name: str, bits: int) -> Quantizer:
    """The quantiser of that name at that many bits, once it is known to train.

    Raises
    ------
    QuantError
        If it does not, or there is none.
    """
    quantizer = get(name, bits)
    if not quantizer.trains:
        raise QuantError(f"{name} does not train: quantise with it after training")
    return quantizer


class QuantLinear(nn.Linear):
    """A linear layer whose weight is quantised in every pass; ``weight`` is the latent one, the bias stays.

    In eval mode without gradients the quantised weight is kept until the latent one, or the step, is another.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As in ``torch.nn.Linear``; no bias by default (PAPER 1.2).
    bits
        1 to 8.
    quantizer
        A name that :func:`quant.quantizers.get` takes. One that learns its step makes a parameter ``step`` (G,), which
        fits the weight that the layer begins with: after another one is put in, call :meth:`reset_step`.

    A QuantError if there is no such quantiser at these bits, or it does not train.
    """

    step: nn.Parameter | None
    _kept: tuple[list[_Seen], Tensor] | None = None  # what the values came from, and the values

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
        rule = trained(quantizer, bits)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.bits = bits
        self.quantizer = quantizer
        if isinstance(rule, Lsq):
            self.step = nn.Parameter(rule.first_step(self.weight))

    def reset_step(self) -> None:
        """Begin again with the step that fits the weight as it is now; nothing where no step is learned."""
        rule, step = get(self.quantizer, self.bits), self._step()
        if step is not None:
            assert isinstance(rule, Lsq)
            with torch.no_grad():
                step.copy_(rule.first_step(self.weight))

    def forward(self, input: Tensor) -> Tensor:
        """The layer with the values that its weight is stored with."""
        return nn.functional.linear(input, self._values(), self.bias)

    def grid(self) -> Grid:
        """The grid of the latent weight as it is now."""
        rule, step = get(self.quantizer, self.bits), self._step()
        if step is None:
            return rule.fit(self.weight)
        assert isinstance(rule, Lsq)
        return rule.grid_of_step(step, self.weight)

    def deployed(self) -> nn.Linear:
        """A plain linear layer that computes the same, with the quantised values as its weight; it shares no tensor."""
        weight = self.weight
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta", dtype=weight.dtype)
        with torch.no_grad():
            baked = fake_quantize(weight, get(self.quantizer, self.bits), self._step())
        layer.weight = nn.Parameter(baked, requires_grad=weight.requires_grad)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """What ``print`` shows of the layer."""
        return f"{super().extra_repr()}, bits={self.bits}, quantizer={self.quantizer}"

    def __getstate__(self) -> dict[str, Any]:
        """Without the kept values: a copy quantises for itself."""
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def _step(self) -> nn.Parameter | None:
        return self._parameters.get("step")

    def _values(self) -> Tensor:
        """The quantised weight, kept from the last pass where it is the same and nobody asks for its gradient."""
        weight, step, quantizer = self.weight, self._step(), get(self.quantizer, self.bits)
        if self.training:
            return fake_quantize(weight, quantizer, step)
        latent = [weight] if step is None else [weight, step]
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in latent)
        if wanted or any(t.is_inference() for t in latent):  # inference tensors count no versions
            return fake_quantize(weight, quantizer, step)
        if self._kept is None or not all(s.same(t) for s, t in zip(self._kept[0], latent, strict=True)):
            with torch.inference_mode(False), torch.no_grad():  # of use in later passes of every mode
                self._kept = [_Seen(t) for t in latent], fake_quantize(weight, quantizer, step)
        return self._kept[1]


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


class _Seen:
    """A tensor as it is now, to tell later whether it is another.

    Writing into a tensor raises its version, but for writes through ``.data``; on a processor, where it costs next to
    nothing, the entries are compared too. The old storage is held, so that no new one can take its place in memory.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version, self.storage = tensor, tensor._version, tensor.detach()
        self.entries = tensor.detach().clone() if tensor.device.type == "cpu" else None

    def same(self, tensor: Tensor) -> bool:
        """Whether it is this tensor, unchanged."""
        if tensor is not self.tensor or tensor._version != self.version:
            return False
        if tensor.data_ptr() != self.storage.data_ptr() or tensor.dtype != self.storage.dtype:
            return False
        return self.entries is None or torch.equal(tensor, self.entries)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, quantizer: Quantizer) -> Tensor:
        grid = quantizer.fit(w)
        values, kept = grid.forward(w)
        ctx.grid = grid
        ctx.save_for_backward(*[t for block in kept for t in block])
        return values.to(w.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        parts = [ctx.grid.quantizer.backward(g, table, *kept) for g, table, kept in _blocks(ctx, grad)]
        return _joined(parts, grad), None


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, step: Tensor, quantizer: Lsq) -> Tensor:
        grid = quantizer.grid_of_step(step, w)
        values, kept = grid.forward(w)
        ctx.grid, ctx.negative = grid, step < 0
        ctx.save_for_backward(*[t for block in kept for t in block])
        return values.to(w.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        parts = [ctx.grid.quantizer.step_backward(g, table, *kept) for g, table, kept in _blocks(ctx, grad)]
        steps = torch.cat([s for _, s in parts])
        # the magnitude of the step is used
        return _joined([w for w, _ in parts], grad), torch.where(ctx.negative, -steps, steps), None


def _blocks(ctx: Any, grad: Tensor) -> list[tuple[Tensor, Tensor, tuple[Tensor, ...]]]:
    """The gradient of each block of groups with its statistics and what was saved of it."""
    blocks = ctx.grid.groups(grad.to(ctx.grid.table.dtype))
    each = len(ctx.saved_tensors) // len(blocks)
    return [(g, table, ctx.saved_tensors[i * each : (i + 1) * each]) for i, (g, table) in enumerate(blocks)]


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    flat = parts[0] if len(parts) == 1 else torch.cat([p.flatten() for p in parts])
    return flat.view(like.shape).to(like.dtype)
