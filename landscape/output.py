"""What a model returns, as logits and as log-probabilities, and the default loss of them. N samples, C classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError


def log_probs_of(logits: Tensor) -> Tensor:
    """Log-softmax over the classes in float64 (N, C)."""
    # Apple's devices have no float64.
    return (logits.cpu() if logits.device.type == "mps" else logits).double().log_softmax(dim=1)


def cross_entropy(log_probs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in nats of each sample (N,), of class indices (N,) or class probabilities (N, C).

    Raises
    ------
    LandscapeError
        If the targets are neither.
    """
    classes = log_probs.shape[1]
    if targets.is_floating_point():
        if targets.shape != log_probs.shape:
            raise LandscapeError(
                f"expected class indices (N,) or probabilities {tuple(log_probs.shape)}, "
                f"found float targets {tuple(targets.shape)}"
            )
        # A class of target probability 0 adds nothing, even where its log-probability is -inf.
        return -torch.where(targets == 0, 0.0, targets * log_probs).sum(dim=1)
    if targets.dtype == torch.bool:
        raise LandscapeError("expected class indices or probabilities, found targets of type bool")
    targets = targets.long()
    if targets.ndim != 1 or int(targets.min()) < 0 or int(targets.max()) >= classes:
        raise LandscapeError(
            f"expected class indices (N,) from 0 to {classes - 1}, found shape {tuple(targets.shape)}, "
            f"{int(targets.min())} to {int(targets.max())}"
        )
    return -log_probs.gather(1, targets[:, None]).squeeze(1)


def logits_of(output: Any) -> Tensor:
    """The logits of what a model returned, in float32 or better.

    Raises
    ------
    LandscapeError
        If there are none in it.
    """
    if not isinstance(output, Tensor):
        output = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(output, Tensor) or output.ndim == 0:
        raise LandscapeError("expected the model to return logits, or something with `logits`; wrap it in a module")
    return output if output.dtype in (torch.float32, torch.float64) else output.float()
