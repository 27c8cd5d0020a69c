"""The low-rank branches of a network: their hidden units on images, and the same network with smaller pairs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analyses.errors import AnalysisError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from train.methods._parts import LowRank

Pair = tuple["Tensor", "Tensor"]
"""Down (h, d_in) and up (d_out, h)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """One pair of matrices and what its hidden units do.

    ``down`` (h, d_in), ``up`` (d_out, h); ``moments`` (h, h) float64, the mean over images and tokens of z z' with
    z = act(down x); ``linear``: there is no nonlinearity between the two.
    """

    down: Tensor
    up: Tensor
    moments: Tensor
    linear: bool


def measure(model: nn.Module, inputs: Tensor, batch_size: int) -> dict[str, Branch]:
    """The branches of a deployed network by the name of their module, with their moments on ``inputs``."""
    import torch
    from torch import nn

    found = _branches(model)
    sums = {
        name: torch.zeros(b.down.weight.shape[0], b.down.weight.shape[0], dtype=torch.float64)
        for name, b in found.items()
    }
    rows = dict.fromkeys(found, 0)

    def add(name: str, z: Tensor) -> None:
        z = z.detach().flatten(0, -2).double()
        sums[name] += (z.T @ z).cpu()
        rows[name] += len(z)

    device = next(model.parameters()).device
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, branch in found.items():
            handle = branch.up.register_forward_pre_hook(lambda _, given, name=name: add(name, given[0]))
            hooks.callback(handle.remove)
        for batch in inputs.split(batch_size):
            model(batch.to(device))
    return {
        name: Branch(
            down=b.down.weight.detach().cpu(),
            up=b.up.weight.detach().cpu(),
            moments=sums[name] / rows[name],
            linear=isinstance(b.act, nn.Identity),
        )
        for name, b in found.items()
    }


def with_pairs(model: nn.Module, pairs: Mapping[str, Pair]) -> nn.Module:
    """A copy of a deployed network with these matrices in its branches; a smaller hidden size is their own."""
    import torch

    model = copy.deepcopy(model)
    for name, (down, up) in pairs.items():
        branch = model.get_submodule(name)
        for layer, w in ((branch.down, down), (branch.up, up)):
            assert isinstance(layer, torch.nn.Linear)
            old = layer.weight
            layer.weight = torch.nn.Parameter(w.to(old.device, old.dtype), requires_grad=old.requires_grad)
            layer.out_features, layer.in_features = w.shape
    return model


def _branches(model: nn.Module) -> dict[str, LowRank]:
    """By name.

    Raises
    ------
    AnalysisError
        If there is none, or one of another kind than down, act, up without biases.
    """
    import torch

    from train.methods._parts import LowRank

    found = {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}
    if not found:
        raise AnalysisError(
            f"expected an adapter of pairs of matrices, down and up, found none in {type(model).__name__}"
        )
    for name, branch in found.items():
        if (
            type(branch.down) is not torch.nn.Linear
            or type(branch.up) is not torch.nn.Linear
            or branch.up.bias is not None
        ):
            raise AnalysisError(f"{name}: expected two linear layers without biases, found {branch}")
        if not isinstance(branch.act, torch.nn.ReLU | torch.nn.Identity):
            raise AnalysisError(f"{name}: units merge through a ReLU or nothing, found {branch.act}")
    return found
