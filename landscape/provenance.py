"""What every table and estimate says of how it came about (NUMERICS 28), plain data."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from landscape.objective import Objective
from landscape.space import Space


def of_space(space: Space) -> dict[str, Any]:
    """What moves and how, in which mode and number format, and on what it was computed."""
    first = next(iter(space.parameters.values()))
    return {
        "policy": asdict(space.policy),
        "space": {
            "kind": space.kind,
            "head": space.head,
            "tensors": len(space.names),
            "k": space.k,
            "share": space.share,
        },
        "mode": {"eval": True, "batch_norm": space.batch_norm, "weights": space.weights},
        "dtype": str(first.dtype).removeprefix("torch."),
        "device": name_of(first.device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def name_of(device: torch.device) -> str:
    """The kind of a device, and of a GPU its name: another one rounds in another way."""
    return f"cuda, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def of_objective(objective: Objective) -> dict[str, Any]:
    """The data, and the loss that is taken over them."""
    loss = objective.loss
    return {
        "fingerprint": objective.fingerprint,
        "samples": objective.n,
        "batch_size": objective.batch_size,
        "halvings": objective.halvings,
        "loss": "cross entropy" if loss is None else getattr(loss, "__name__", type(loss).__name__),
    }
