"""Running statistics of BatchNorm at moved weights: which tensors they are, and how to take them anew.

Frozen statistics belong to the weights of the centre; a moved network with them is not the one that its own activations
would give (Izmailov et al. 2018, section 3.2, on averaged weights). Which of the two is meant is a mode (NUMERICS 4).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape.errors import LandscapeError
from landscape.guard import eval_mode
from landscape.objective import Objective

STATISTICS = ("running_mean", "running_var")


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    """Running means and variances by name, in the model's order."""
    return {
        f"{name}.{leaf}" if name else leaf: buffer
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for leaf, buffer in module.named_buffers(recurse=False)
        if leaf in STATISTICS
    }


def follow(mode: str, objective: Objective) -> int:
    """Take the running statistics anew where the mode asks for it, ``recalibrate``; how many passes that took."""
    if mode != "recalibrate":
        return 0
    recalibrate(objective)
    return 1


def recalibrate(objective: Objective) -> None:
    """Take the running statistics anew from the objective's data, at the weights that the model has now.

    The mean over batches of each batch's mean and unbiased variance, in the order of the data: the same data in the
    same batches give the same statistics. Other batches give others, since what a layer sees depends on the batch that
    the layers before it are normalised by. Everything else stays in eval mode.

    Raises
    ------
    LandscapeError
        If the model has no running statistics, or a batch has a single value to take a variance of.
    """
    layers = [m for m in objective.model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        raise LandscapeError("expected BatchNorm with running statistics to recalibrate, found none in the model")
    momenta = [layer.momentum for layer in layers]
    with eval_mode(objective.model), torch.no_grad():
        try:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum, layer.training = None, True  # None: the plain mean over batches
            for rows in objective.batches():
                objective.logits(rows)
        except ValueError as error:
            raise LandscapeError(f"statistics cannot be taken from these batches: {error}") from error
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum, layer.training = momentum, False
