"""One GPU for each worker: which one it sees, and how what lay on another one is loaded there."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch

MOST = 128
"""GPUs of one machine."""


def names(count: int, visible: str | None) -> list[str]:
    """The GPUs that this process sees, as ``CUDA_VISIBLE_DEVICES`` calls them.

    Parameters
    ----------
    count
        How many torch sees.
    visible
        The variable as it is set; an allocation of ``"2,3"`` leaves those two.
    """
    given = [name.strip() for name in (visible or "").split(",") if name.strip()]
    return given[:count] if len(given) >= count else [str(number) for number in range(count)]


def load(payload: bytes) -> Any:
    """Unpickle; what lay on any GPU comes to the first one that this process sees."""
    return _Loader(io.BytesIO(payload)).load()


class _Loader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage
        if (module, name) == ("torch", "device"):
            return first
        return super().find_class(module, name)


def first(kind: str, index: int | None = None) -> torch.device:
    """The device of these arguments of ``torch.device``; the first GPU for any GPU."""
    device = torch.device(kind) if index is None else torch.device(kind, index)
    return torch.device("cuda", 0) if device.type == "cuda" else device


def _storage(data: bytes) -> Any:
    # From the parent, which is trusted as it is with the whole pickle.
    to_first = {f"cuda:{number}": "cuda:0" for number in range(MOST)}
    return torch.load(io.BytesIO(data), map_location=to_first, weights_only=False)
