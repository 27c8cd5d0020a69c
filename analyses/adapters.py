"""Adapter files that lie alone, opened as checkpoints: .lowbit files, the paper's ``.bin``, peft's folders.

The file says which backbone, method and task it is of; ``--backbone`` and ``--task`` say where these lie now, or what
the file leaves out. The network is built anew and the file's values are put into it; of a peft folder, LoRA is folded
into the matrices that it changes.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.errors import AnalysisError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from analyses.checkpoint import Checkpoint
    from analyses.options import Options
    from quant.lowbit import Lowbit
    from train.spec import RunSpec

OLD_NAMES = {"vit_base_patch16_224_in21k": "vit_base_patch16_224.orig_in21k"}
"""The paper's backbone as timm called it then and calls it now; the old name now means other weights (PAPER 1.5)."""

_BASE = "base_model.model."


def is_adapter(path: Path) -> bool:
    """Whether it looks like one of these: a .lowbit or .bin file, or a folder of peft's."""
    from quant.peft import is_peft

    return path.suffix in (".lowbit", ".bin") if path.is_file() else is_peft(path)


def open_adapter(path: Path, options: Options) -> Checkpoint:
    """Open a file or a folder.

    Raises
    ------
    AnalysisError
        If the network that it is of cannot be built: what it needs is missing, or it was made for other things.
    """
    from quant.lowbit import read_lowbit
    from quant.peft import read_peft
    from quant.petl import config_beside, read_petl

    if path.is_dir():
        lowbit = read_peft(path)
    elif path.suffix == ".bin":
        lowbit = read_petl(path, config_beside(path))
    else:
        lowbit = read_lowbit(path)
    try:
        return _of_peft(path, lowbit, options) if "peft" in lowbit.header else _of_method(path, lowbit, options)
    except (TypeError, AttributeError, KeyError) as error:  # a header may say anything
        raise AnalysisError(
            f"{path}: expected a header of plain facts, found a field of another kind ({error})"
        ) from None


def _of_method(path: Path, lowbit: Lowbit, options: Options) -> Checkpoint:
    """A checkpoint of one of our methods.

    Raises
    ------
    AnalysisError
        If tensors, classes or backbone are not what the network has.
    """
    from analyses.pack import padded
    from quant.fake import bake
    from train.build import build, device_of, load_into, load_task
    from train.methods import get

    header = lowbit.header
    spec = _spec(path, lowbit, options)
    stored = _finite(path, lowbit)
    if spec.dim > (weights := sum(w.numel() for w in stored.values())):  # before a network of that size is built
        raise AnalysisError(f"{path.name} has {weights} weights: expected a dim of no more, found {spec.dim}")
    _check_backbone(path, spec, header.get("backbone_hash"))
    task, classes = load_task(spec), header.get("classes")
    if classes is not None and list(classes) != list(task.classes):
        raise AnalysisError(
            f"{path.name} tells {len(classes)} classes apart, {', '.join(map(str, classes[:3]))}, ..., found those of "
            f"{task.name}: {', '.join(task.classes[:3])}, ...: --task should name the task that it was made for"
        )
    model = bake(build(spec, len(task.classes)))
    wanted = set(get(spec.method).kept(model))
    for name in sorted(wanted ^ set(stored)):
        what = "lacks" if name in wanted else "holds"
        raise AnalysisError(f"{path.name} {what} the tensor {name}: it is not of {get(spec.method).label(spec.dim)}")
    for name in get(spec.method).adapter_names(model):  # hidden units that were taken away
        stored[name] = padded(stored[name], model.get_parameter(name).shape)
    load_into(model, stored, path.name)
    bits = header.get("bits", 32)
    label = get(spec.method).label(spec.dim)
    if get(spec.method).has_adapter:
        label += f", {bits} bit" + ("s" if bits != 1 else "")
    return _checkpoint(
        path, lowbit, spec, task, model.to(device_of(options.device)), method=spec.method, dim=spec.dim,
        bits=bits, label=label,
    )  # fmt: skip


def _of_peft(path: Path, lowbit: Lowbit, options: Options) -> Checkpoint:
    """A checkpoint of a timm network with peft's LoRA folded in, and the head that peft saved whole.

    Raises
    ------
    AnalysisError
        If it is no plain LoRA, or of another network.
    """
    from train.build import build, device_of, load_task
    from train.spec import RunSpec

    if options.backbone is None or options.task is None:
        raise AnalysisError(f"{path.name} is of peft: --backbone and --task should say what network and data it is of")
    spec = RunSpec(
        task=options.task,
        train_size=options.train_size,
        backbone=options.backbone,
        img_size=options.img_size,
        method="full",
    )
    task = load_task(spec)
    model = build(spec, len(task.classes))
    _fold(path, model, _finite(path, lowbit), lowbit.header["peft"])
    dim, bits = lowbit.header["peft"].get("r", 0), min((t.bits for t in lowbit.tensors), default=32)
    model = model.to(device_of(options.device))
    return _checkpoint(path, lowbit, spec, task, model, method="full", dim=dim, bits=bits, label=path.stem)


def _checkpoint(path: Path, lowbit: Lowbit, spec: RunSpec, task: Any, model: nn.Module, **known: Any) -> Checkpoint:
    from analyses.checkpoint import Checkpoint
    from figures.tables import key_of
    from quant.lowbit import to_bytes
    from train.build import backbone_hash, transform

    identity = {
        "adapter": hashlib.sha256(to_bytes(lowbit)).hexdigest(),
        "backbone": backbone_hash(spec),
        "data": task.fingerprint,
        "transform": transform(spec).describe(),
    }
    return Checkpoint(
        path=path, seed=0, model=model.eval(), task=task, transform=transform(spec), identity=key_of(identity), **known
    )


def _spec(path: Path, lowbit: Lowbit, options: Options) -> RunSpec:
    """The network that a file is of: with plain layers, since the file's values are dense.

    Raises
    ------
    AnalysisError
        If neither the file nor the options say what is needed.
    """
    from quant.header import is_head
    from train.spec import RunSpec
    from train.tasks import names

    header = lowbit.header
    task, backbone = str(options.task or header.get("task")), str(options.backbone or header.get("backbone"))
    given = {"--task": task, "--backbone": backbone, "method": str(header.get("method"))}
    if missing := [name for name, value in given.items() if value == "None"]:
        raise AnalysisError(f"{path.name} does not say its {' and '.join(missing)}; --task and --backbone can")
    if options.task is None and task.partition(":")[0] not in names():
        raise AnalysisError(
            f"{path.name} was made for the task {task!r}, which is none of ours: --task folder:PATH or npz:PATH should "
            "say where its data lie"
        )
    return RunSpec(
        task=task,
        train_size=options.train_size,
        backbone=OLD_NAMES.get(backbone, backbone),
        img_size=options.img_size or header.get("img_size"),
        method=header["method"],
        dim=header.get("dim", 0),
        scale=header.get("scale", 1.0),
        head_bits=32 if any(t.name.endswith(".bias") and is_head(t.name, header) for t in lowbit.tensors) else 1,
        inputs=header.get("inputs", "backbone"),
        seed=header.get("seed", 0),
    )


def _check_backbone(path: Path, spec: RunSpec, expected: str | None) -> None:
    """Compare the backbone's content with what the file was made for, if it says.

    Raises
    ------
    AnalysisError
        If it differs.
    """
    from train.build import backbone_hash

    if expected is not None and (found := backbone_hash(spec)) != expected:
        raise AnalysisError(
            f"{path.name} was made for another backbone: expected content {expected[:16]}, found {found[:16]} of "
            f"{spec.backbone}; --backbone NAME@FILE should name the right weights"
        )


def _finite(path: Path, lowbit: Lowbit) -> dict[str, torch.Tensor]:
    """The values by name, in float32.

    Raises
    ------
    AnalysisError
        If one is not finite.
    """
    stored = {t.name: t.dense().float() for t in lowbit.tensors}
    for name, value in stored.items():
        if not bool(value.isfinite().all()):
            raise AnalysisError(f"{path.name}: {name} has values that are not finite")
    return stored


def _fold(path: Path, model: nn.Module, stored: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Put LoRA's change into the model's matrices, and the modules that were saved whole in their places; in place.

    Raises
    ------
    AnalysisError
        If there is a tensor that the model has no place for, or the head is missing.
    """
    from train.methods import head_names

    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("fan_in_fan_out"):
        raise AnalysisError(f"{path.name}: expected plain LoRA, found {config.get('peft_type')} of another kind")
    own = model.state_dict()  # these share the model's memory
    for name, value in stored.items():
        target = name.removeprefix(_BASE)
        if target.endswith(".lora_B.weight"):
            continue
        if target.endswith(".lora_A.weight"):
            up = stored.get(name.replace(".lora_A.", ".lora_B."))
            module = target.removesuffix(".lora_A.weight")
            matrix = own.get(f"{module}.weight")
            if up is None or matrix is None or matrix.dim() != 2 or (up.shape[0], value.shape[1]) != matrix.shape:
                raise AnalysisError(
                    f"{path.name} changes {module}, which the network has no linear layer of that shape for"
                )
            matrix += _scaling(config, module, value.shape[0]) * (up @ value)  # W0 + alpha / r  B A
        elif target in own and own[target].shape == value.shape:
            own[target].copy_(value)
        else:
            raise AnalysisError(f"{path.name} holds {name}, which the network has no place for: it is of another model")
    if lacking := [name for name in head_names(model) if _BASE + name not in stored]:
        raise AnalysisError(f"{path.name} has no {lacking[0]}: save the head with it, by modules_to_save")


def _scaling(config: dict[str, Any], module: str, rank: int) -> float:
    """The factor on B A: alpha / r, or alpha / sqrt(r) of rank-stabilised LoRA; alpha may be the module's own."""
    patterns = config.get("alpha_pattern") or {}
    own = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
    alpha = config.get("lora_alpha", rank) if own is None else patterns[own]
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
