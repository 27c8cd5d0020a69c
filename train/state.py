"""Where a training stands after an epoch, in one file, so that a killed run goes on to the same bits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from train.errors import TrainError


@dataclass(kw_only=True)
class State:
    """Position of a training: everything that the next epoch depends on beside weights, optimiser and generators.

    ``epoch`` is the next one to run; ``best`` the selected one so far with its scores, ``best_weights`` its tensors;
    ``test_seen`` the best test accuracy read along the way (protocol ``paper`` only).
    """

    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    test_seen: float | None = None
    seconds: float = 0.0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)


def save(
    path: Path,
    state: State,
    weights: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    order: torch.Generator,
    device: torch.device,
) -> None:
    """Write everything to ``path``, whole or not at all."""
    from safetensors.torch import save as to_bytes

    from figures.tables import write_bytes

    tensors = {f"weights/{name}": w for name, w in weights.items()}
    tensors |= {f"best/{name}": w for name, w in state.best_weights.items()}
    for i, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{slot}": value for slot, value in slots.items()}
    tensors |= {f"rng/{name}": value for name, value in _generators(order, device).items()}
    plain = {name: value for name, value in asdict(_without_weights(state)).items() if name != "best_weights"}
    ready = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_bytes(path, to_bytes(ready, metadata={"state": json.dumps(plain)}))


def load(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    order: torch.Generator,
    device: torch.device,
) -> State:
    """Read what ``save`` wrote: weights, optimiser and generators are set in place, the position is returned.

    Raises
    ------
    TrainError
        If the file is damaged or belongs to another training.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            plain = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        state = State(**plain)
        with torch.no_grad():
            for name, w in weights.items():
                w.copy_(tensors[f"weights/{name}"])
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            if group == "best":
                state.best_weights[rest] = tensor.to(device)
            elif group == "optimizer":
                i, _, slot = rest.partition("/")
                slots.setdefault(int(i), {})[slot] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
        order.set_state(tensors["rng/order"])
        torch.set_rng_state(tensors["rng/cpu"])
        if "rng/cuda" in tensors and device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng/cuda"], device)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainError(f"{path}: expected a training's position, found a damaged file ({first}); delete it") from None
    return state


def _generators(order: torch.Generator, device: torch.device) -> dict[str, torch.Tensor]:
    """States of the generators that training draws from: the order of images, and dropout on either kind of device."""
    states = {"order": order.get_state(), "cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _without_weights(state: State) -> State:
    """The same position with no tensors in it, so that ``asdict`` copies none."""
    return State(**{**vars(state), "best_weights": {}})
