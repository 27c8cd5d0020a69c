"""What a finished training leaves on disk: latent weights, and the small file that would be shipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quant.fake import QuantLinear
from quant.lowbit import Lowbit, LowbitTensor, part_bytes, write_lowbit
from train.methods import get, head_names
from train.run import LOWBIT, TRAINED
from train.spec import RunSpec


def write_weights(folder: Path, model: nn.Module, names: list[str], record: Mapping[str, Any]) -> None:
    """Write the named tensors to ``trained.safetensors``, and but for full fine-tuning to ``adapter.lowbit``.

    ``record`` is the run's: method, backbone and classes go into the header of the shipped file.
    """
    from safetensors.torch import save

    from figures.tables import write_bytes

    own = model.state_dict()
    write_bytes(folder / TRAINED, save({name: own[name].cpu().contiguous() for name in names}))
    if not get(record["spec"]["method"]).whole:
        # grids are fitted where training fitted them: another device may round means and deviations otherwise
        tensors = [_stored(model, name, own[name]) for name in names if not _is_step(model, name)]
        # codes stay dense: runs are compared by bits times weights (PAPER 2.5), not by how well their codes compress
        lowbit = Lowbit(header=header(record, head_names(model)), tensors=tensors)
        write_lowbit(folder / LOWBIT, lowbit, streams=False)


def sizes(folder: Path, *, trained: list[str], head: list[str]) -> dict[str, int]:
    """Bytes of adapter and head within the file that would be shipped, that file's bytes, and trained numbers.

    ``trained`` and ``head`` hold the names of the trained tensors and of the head's; running statistics are in neither,
    yet in the bytes.
    """
    from safetensors import safe_open

    path = folder / LOWBIT
    with safe_open(folder / TRAINED, framework="np") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if path.exists():
        of = part_bytes(path)
    else:
        path = folder / TRAINED
        parts = {name: tensor.nbytes for name, tensor in stored.items()}
        head_bytes = sum(parts.get(name, 0) for name in head)
        of = {"adapter": sum(parts.values()) - head_bytes, "head": head_bytes}
    return {
        "adapter_bytes": of["adapter"],
        "head_bytes": of["head"],
        "file_bytes": path.stat().st_size,
        "trained_parameters": sum(stored[name].size for name in trained),
    }


def header(record: Mapping[str, Any], head: Sequence[str]) -> dict[str, Any]:
    """What the shipped file says about itself: enough to put its tensors into the backbone that it names.

    ``head``: names of the head's tensors.
    """
    kept = ("method", "dim", "bits", "quantizer", "scale", "head_bits", "img_size", "inputs")
    places = RunSpec.from_dict(record["spec"]).without_folders()
    heads = {name.rpartition(".")[0] for name in head}
    seeded = str(places["backbone"]).startswith("random:") or get(record["spec"]["method"]).seeded
    return {
        **{name: record["spec"][name] for name in kept},
        **{name: places[name] for name in ("backbone", "task")},
        **({"head": sorted(heads)} if heads - {"head"} else {}),
        **({"seed": record["spec"]["seed"]} if seeded else {}),
        "backbone_hash": record["fingerprints"]["backbone"],
        "classes": list(record["classes"]),
    }


def _stored(model: nn.Module, name: str, latent: torch.Tensor) -> LowbitTensor:
    """A trained tensor as the shipped file holds it: codes and statistics of a low-bit matrix, else its values."""
    owner, _, kind = name.rpartition(".")
    layer = model.get_submodule(owner)
    if isinstance(layer, QuantLinear) and kind == "weight":
        return LowbitTensor.on_grid(name, latent, layer.grid())
    return LowbitTensor.plain(name, latent)


def _is_step(model: nn.Module, name: str) -> bool:
    """Whether a tensor is a low-bit matrix's learned step, which the file holds as its statistic."""
    owner, _, kind = name.rpartition(".")
    return kind == "step" and isinstance(model.get_submodule(owner), QuantLinear)
