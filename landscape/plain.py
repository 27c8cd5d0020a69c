"""Operations of torch whose second derivative is wrong, written out while one is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode


@contextmanager
def written_out(model: nn.Module) -> Iterator[None]:
    """Weight normalisation by elementary operations inside: the fused one fails ``gradgradcheck``."""
    normalised = any(
        isinstance(module, parametrizations._WeightNorm)
        or any(isinstance(hook, WeightNorm) for hook in module._forward_pre_hooks.values())
        for module in model.modules()
    )
    if not normalised:
        yield
        return
    with _Plain():
        yield


class _Plain(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch._weight_norm:
            return _weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    # g v / ||v||, a norm for each index along dim (Salimans and Kingma 2016, equation 2)
    return v * (g / torch.norm_except_dim(v, 2, dim))
