"""What a measurement must leave as it found it (NUMERICS 3 and 4): modes, buffers and random states.

Module flags are set one by one and never through ``train()`` or ``eval()``: some modules override those with work of
their own (LoRA layers merge weights in ``eval()``).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape and dtype are equal bit for bit (NaN equals NaN, 0 differs from -0)."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.view(integer), b.view(integer))


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, each back in its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def random_states(model: nn.Module) -> Iterator[None]:
    """Put back the generators of torch (the processor's and the model's devices'), numpy and Python."""
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  (saved and put back, never drawn from)
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put back the mode of each module, every buffer bit for bit, and the random states."""
    modes = [(module, module.training) for module in model.modules()]
    # Named tensors of modules, not model.buffers(): a module may replace the tensor as well as write into it.
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with random_states(model):
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for module, name, buffer, saved in buffers:
                module._buffers[name] = buffer
                if not same_bits(buffer, saved):
                    with torch.no_grad():
                        buffer.copy_(saved)
