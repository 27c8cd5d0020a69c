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
from torch.nn.utils import parametrize


def strided(tensor: Tensor) -> list[Tensor]:
    """The tensors in memory that a tensor is made of: itself, or the indices and values of a sparse one."""
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape and dtype are equal bit for bit (NaN equals NaN, 0 differs from -0)."""
    if a.layout != torch.strided:
        parts = list(zip(strided(a), strided(b), strict=True))
        return all(x.shape == y.shape and same_bits(x, y) for x, y in parts)
    if not a.is_floating_point():
        return torch.equal(a, b)
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.view(integer), b.view(integer))


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, each back in its own mode afterwards; nothing computed of weights is kept.

    Autocast and ``parametrize.cached`` around a measurement keep what they made of a weight, and do not notice that it
    was moved: every point would have the loss of the first.
    """
    training = [module for module in model.modules() if module.training]
    casts, parametrised = torch.is_autocast_cache_enabled(), parametrize._cache_enabled
    for module in training:
        module.training = False
    torch.set_autocast_cache_enabled(False)
    torch.clear_autocast_cache()
    parametrize._cache_enabled = 0
    try:
        yield
    finally:
        parametrize._cache_enabled = parametrised
        torch.set_autocast_cache_enabled(casts)
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
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    with random_states(model):
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for module, name, buffer, saved in buffers:
                module._buffers[name] = buffer
                if buffer is not None and saved is not None and not same_bits(buffer, saved):
                    with torch.no_grad():
                        buffer.copy_(saved)
