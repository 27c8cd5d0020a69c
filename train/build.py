"""From a specification to a network and its inputs: the parts that training and reopening a run share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from train import backbones
from train.errors import TrainError
from train.methods import get
from train.spec import RunSpec
from train.tasks import Task, Transform, load

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
INITIAL = "initial values"
EVAL_BATCH = 256
"""Images a forward pass when a network is judged: fixed, since logits are bit-equal only at one batch size."""

Tensors = tuple[torch.Tensor, torch.Tensor]
Cache = MutableMapping[object, Tensors]


@dataclass(frozen=True, kw_only=True)
class Score:
    """How a network does on a split: mean cross-entropy and share of hits over N images, and which logits gave them."""

    loss_nats: float
    accuracy: float
    logits_sha256: str


def device_of(name: str) -> torch.device:
    """The device of that name.

    Raises
    ------
    TrainError
        If there is no such device, or not on this machine.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TrainError(f"unknown device {name!r}: expected cpu, cuda, cuda:N or mps") from None
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(device.type, False):
        raise TrainError(f"device {name!r} is not available here; available: {', '.join(k for k in here if here[k])}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TrainError(f"device {name!r} is not available here; there are {torch.cuda.device_count()} of cuda")
    return device


def stream(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose (initial values, order, dropout), derived from the run's."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:7], "big")


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Torch's global generators start from ``seed`` inside and are as before afterwards."""
    cuda = [device.index or 0] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


def build(spec: RunSpec, classes: int) -> nn.Module:
    """The network at its initial values, what is not trained frozen; in its method's training mode, on the processor.

    The same specification gives the same bits. Backbone and head are drawn before the adapter, so that methods
    compared at one seed share them.
    """
    method = get(spec.method)
    with seeded(stream(spec.seed, INITIAL)):
        model = backbones.create(spec.backbone, classes, img_size=spec.img_size, drop_path=spec.recipe.drop_path)
        method.apply(
            model,
            dim=spec.dim,
            bits=spec.bits,
            quantizer=spec.quantizer,
            scale=spec.scale,
            head_bits=spec.head_bits,
        )
    method.train(model)
    return model


def backbone_hash(spec: RunSpec) -> str:
    """Fingerprint of the backbone's weights, head left out: as they are stored, or as drawn where they are random."""
    info = backbones.describe(spec.backbone, img_size=spec.img_size)
    if info.weights != "random":
        return info.hash
    with seeded(stream(spec.seed, INITIAL)):
        model = backbones.create(spec.backbone, 1, img_size=spec.img_size)
    return backbones.content_hash(model.state_dict(), info.head)


def load_task(spec: RunSpec, size: int | None = None) -> Task:
    """The task that a specification names, its images decoded.

    A folder's images may differ in size: they are decoded at ``size``, or at the network's if None; those of an npz
    file at the size asked for.
    """
    if size is None and (spec.task.startswith("folder:") or (spec.task.startswith("npz:") and spec.img_size)):
        size = transform(spec).size
    return load(spec.task, train_size=spec.train_size, test_size=spec.test_size, data_seed=spec.data_seed, size=size)


def load_into(model: nn.Module, tensors: Mapping[str, torch.Tensor], where: str, *, whole: bool = False) -> None:
    """Copy tensors, running statistics among them, into a model by name; ``whole``: every one that it stores.

    Raises
    ------
    TrainError
        If the model has no tensor of a name, one of another shape, or one that is missing; ``where`` names the file.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in tensors] if whole else []
    if missing:
        raise TrainError(f"{where}: expected a tensor named {missing[0]}, which the network has, found none")
    for name, tensor in tensors.items():
        if name not in own:
            raise TrainError(f"{where}: the network has no tensor named {name}")
        if own[name].shape != tensor.shape:
            expected, found = tuple(own[name].shape), tuple(tensor.shape)
            raise TrainError(f"{where}: expected {name} of shape {expected}, found {found}")
        own[name].copy_(tensor)


def transform(spec: RunSpec) -> Transform:
    """How images become inputs: the backbone's size (or the given one) and the normalisation asked for."""
    info = backbones.describe(spec.backbone, img_size=spec.img_size)
    mean, std = {"backbone": (info.mean, info.std), "unit": UNIT, "imagenet": IMAGENET}[spec.inputs]
    return Transform(size=info.img_size, mean=mean, std=std)


def tensors(spec: RunSpec, task: Task, split: str, cache: Cache | None = None) -> Tensors:
    """Inputs (N, 3, S, S) float32 and labels (N,) int64 of ``train``, ``val``, ``test`` or ``train+val``.

    Raises
    ------
    TrainError
        If there is no such split, no image in it, or a label beyond the task's classes.
    """
    how = transform(spec)
    key = (task.fingerprint, how, split)
    if cache is not None and key in cache:
        return cache[key]
    if split == "train+val":
        parts = [tensors(spec, task, part, cache) for part in ("train", "val")]
        found = (torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
    elif split in ("train", "val", "test"):
        x, y = task.tensors(split, how)
        found = (torch.as_tensor(x), torch.as_tensor(y))
    else:
        raise TrainError(f"unknown split {split!r}: expected train, val, test or train+val")
    if not len(found[1]):
        raise TrainError(f"{task.name}: expected {split} images, found none: raise train_size")
    low, high = int(found[1].min()), int(found[1].max())
    if low < 0 or high >= len(task.classes):
        raise TrainError(f"{task.name}: {len(task.classes)} classes, but the {split} labels run from {low} to {high}")
    if cache is not None:
        cache[key] = found
    return found


def predict(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Logits (N, C), float32 on the processor, in eval mode and without gradients; modes are as before afterwards."""
    device = next(model.parameters()).device
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            parts = [model(x.to(device)).float().cpu() for x in inputs.split(EVAL_BATCH)]
    finally:
        for module in training:
            module.training = True
    return torch.cat(parts)


def score(logits: torch.Tensor, labels: torch.Tensor) -> Score:
    """Mean cross-entropy, in float64 from the logits as they are, and accuracy."""
    labels = labels.cpu()
    loss = nn.functional.cross_entropy(logits.double(), labels, reduction="sum")
    hits = int((logits.argmax(dim=1) == labels).sum())
    digest = hashlib.sha256(np.ascontiguousarray(logits.numpy()).astype("<f4").tobytes()).hexdigest()
    return Score(loss_nats=float(loss) / len(labels), accuracy=hits / len(labels), logits_sha256=digest)
