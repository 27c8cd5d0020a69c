"""Backbones: timm networks with pretrained weights from the shipped asset, a local file or the hub, and a fresh head.

Names: ``vit_tiny32`` (shipped); a timm name (weights from the hub); ``NAME@PATH`` (timm's or the shipped architecture,
weights from a .safetensors, .pth or .npz file); ``random:NAME`` (no weights). Loading is timm's: conversion,
and position embeddings resampled to another image size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.errors import TrainError, nearest
from train.pretrain import ARCHITECTURE, MEAN, STD
from train.pretrain import NAME as SHIPPED

if TYPE_CHECKING:
    import torch
    from torch import nn

    from train.tasks import Transform

ASSETS = Path(__file__).parent / "assets"
SUFFIXES = (".safetensors", ".pth", ".pt", ".npz")
WRAPPERS = ("state_dict", "model", "model_state_dict")


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """What a backbone's name stands for.

    ``name`` is as given; ``architecture`` with ``arguments`` is what timm builds; ``mean`` and ``std`` are what it was
    pretrained with, ``img_size`` the input side in pixels; ``weights`` is ``"random"``, ``"hub"`` or a file; ``head``
    names the modules that are replaced by the fresh head.
    """

    name: str
    architecture: str
    arguments: Mapping[str, Any]
    img_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str | Path
    head: tuple[str, ...]

    @cached_property
    def hash(self) -> str:
        """``content_hash`` of the weights as they are stored, read when first asked; ``"random"`` if there are none."""
        return "random" if self.weights == "random" else content_hash(read_weights(self), self.head)

    def transform(self) -> Transform:
        """The transform with this backbone's size and normalisation."""
        from train.tasks import Transform

        return Transform(size=self.img_size, mean=self.mean, std=self.std)


def describe(name: str, *, img_size: int | None = None) -> BackboneInfo:
    """Resolve a backbone's name; no weights are read.

    Raises
    ------
    TrainError
        An unknown architecture, a missing file, or an image size below one pixel.
    """
    base, at, path = name.partition("@")
    architecture = base.removeprefix("random:")
    weights: str | Path = "random" if base != architecture else "hub"
    if at:
        if weights == "random" or not path.endswith(SUFFIXES):
            raise TrainError(f"backbone {name!r}: expected NAME@PATH with a file that ends in {', '.join(SUFFIXES)}")
        weights = Path(path).expanduser()
        if not weights.is_file():
            raise TrainError(f"backbone {name!r}: no such file: {weights}")
    if architecture == SHIPPED:
        if weights == "hub":
            weights = ASSETS / f"{SHIPPED}.safetensors"
        info = _describe_shipped(name, weights)
    else:
        info = _describe_timm(name, architecture, weights)
    if img_size is None:
        return info
    if img_size < 1:
        raise TrainError(f"backbone {name!r}: img_size must be at least 1 pixel, found {img_size}")
    arguments = dict(info.arguments)
    if "img_size" in arguments:
        arguments["img_size"] = img_size
    return replace(info, img_size=img_size, arguments=arguments)


def create(name: str, num_classes: int, *, img_size: int | None = None, drop_path: float = 0.0) -> nn.Module:
    """Build a backbone with its weights in float32 and a fresh head, in training mode on the processor.

    The head is timm's ``reset_classifier`` with torch's default initialisation, as the paper's (PAPER 1.5). It is drawn
    from torch's global generator: seed that first. Pretrained bodies draw nothing from it: one seed, one head, whatever
    the weights.

    Raises
    ------
    TrainError
        As ``describe``; weights that are missing, damaged or of another network; an image size that is no multiple of
        the patch.
    """
    import timm
    import torch

    if num_classes < 1:
        raise TrainError(f"backbone {name!r}: expected at least one class, found {num_classes}")
    info = describe(name, img_size=img_size)
    arguments = {**info.arguments, "num_classes": 0, **({"drop_path_rate": drop_path} if drop_path else {})}
    if info.weights == "random":
        model: Any = timm.create_model(info.architecture, **arguments)
    else:
        with torch.random.fork_rng(devices=[]):
            model = _pretrained(info, arguments)
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch and any(info.img_size % p for p in patch):
        raise TrainError(
            f"backbone {name!r}: img_size {info.img_size} is not a multiple of its patches of {patch[0]} pixels; "
            f"nearest: {max(1, round(info.img_size / patch[0])) * patch[0]}"
        )
    model.reset_classifier(num_classes)
    return model


def content_hash(state: Mapping[str, torch.Tensor], head: tuple[str, ...] = ("head",)) -> str:
    """SHA-256 (hex) over the sorted (name, dtype, shape, bytes) of tensors, those of ``head`` left out.

    Taken of weights as they are stored, before positions are resampled: the same for every image size.
    """
    import torch

    left_out = {f"{h}.{kind}" for h in head for kind in ("weight", "bias")}
    digest = hashlib.sha256()
    for name in sorted(state):
        if name in left_out:
            continue
        tensor = state[name].detach().cpu().contiguous()
        entry = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(entry).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _describe_shipped(name: str, weights: str | Path) -> BackboneInfo:
    # The card beside the shipped weights says how they are built; for other weights the pretraining's own constants do.
    from train.tasks import Transform

    card: dict[str, Any] = {**ARCHITECTURE, "mean": MEAN, "std": STD}
    file = ASSETS / f"{SHIPPED}.json"
    if weights == ASSETS / f"{SHIPPED}.safetensors":
        try:
            read = json.loads(file.read_text())
            card = {key: read[key] for key in card}
            Transform(size=card["img_size"], mean=tuple(card["mean"]), std=tuple(card["std"]))
        except FileNotFoundError:
            raise TrainError(f"backbone {name!r}: its card {file.name} is missing from the installation") from None
        except (ValueError, KeyError, TypeError) as error:
            raise TrainError(f"backbone {name!r}: its card {file.name} is damaged ({_line(error)})") from error
    arguments = {k: v for k, v in card.items() if k not in ("architecture", "mean", "std")}
    return BackboneInfo(
        name=name, architecture=card["architecture"], arguments=arguments, img_size=card["img_size"],
        mean=tuple(card["mean"]), std=tuple(card["std"]), weights=weights, head=("head",),
    )  # fmt: skip


def _describe_timm(name: str, architecture: str, weights: str | Path) -> BackboneInfo:
    import timm

    base = architecture.partition(".")[0]
    if not timm.is_model(base):
        is_file = architecture.endswith(SUFFIXES)
        hint = "; weights in a file: NAME@PATH" if is_file else nearest(base, [SHIPPED, *timm.list_models()])
        raise TrainError(f"backbone {name!r}: timm has no architecture {base!r}{hint}")
    try:
        cfg = timm.models.get_pretrained_cfg(architecture)
    except RuntimeError:  # no weights of this tag
        cfg = None
    if cfg is None:
        tagged = [m for m in timm.list_pretrained() if m.startswith(f"{base}.")]
        hint = nearest(architecture, tagged) or f"; there are: {', '.join(tagged) or 'none'}"
        raise TrainError(f"backbone {name!r}: timm knows no weights {architecture!r}{hint}")
    head = cfg.classifier or "head"
    side = cfg.input_size[-1]
    return BackboneInfo(
        name=name, architecture=architecture, arguments={"img_size": side} if cfg.fixed_input_size else {},
        img_size=side, mean=tuple(cfg.mean), std=tuple(cfg.std), weights=weights,
        head=(head,) if isinstance(head, str) else tuple(head),
    )  # fmt: skip


def _pretrained(info: BackboneInfo, arguments: Mapping[str, Any]) -> Any:
    # Built without a head on both sides, timm's loading is strict: a tensor that is missing or left over is an error.
    import timm

    if info.weights == "hub":
        return _from_hub(info, arguments)
    if Path(info.weights).suffix == ".npz":
        return _load_npz(timm.create_model(info.architecture, **arguments), info)
    state = {k: v.float() if v.is_floating_point() else v for k, v in read_weights(info).items()}
    for key in [k for k in state if k in {f"{h}.{kind}" for h in info.head for kind in ("weight", "bias")}]:
        del state[key]
    overlay = {"state_dict": state, "num_classes": 0, "label_offset": 0}
    try:
        model: Any = timm.create_model(info.architecture, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    except Exception as error:  # a foreign file makes timm's converters raise whatever they stumble on
        raise TrainError(_unfit(info, error)) from error
    model.pretrained_cfg.pop("state_dict", None)  # or every copy of the model would carry the weights twice
    return model


def _load_npz(model: Any, info: BackboneInfo) -> Any:
    # Google's .npz of a ViT, converted and resampled by timm.
    if not hasattr(model, "load_pretrained"):
        raise TrainError(
            f"backbone {info.name!r}: {info.architecture} does not load .npz files; take .safetensors or .pth"
        )
    read_weights(info)  # a damaged file is told from a foreign one
    try:
        model.load_pretrained(str(info.weights))
    except Exception as error:  # as above
        raise TrainError(_unfit(info, error)) from error
    return model


def _from_hub(info: BackboneInfo, arguments: Mapping[str, Any]) -> Any:
    # timm's own pretrained weights, from its cache or the network.
    import timm

    try:
        return timm.create_model(info.architecture, pretrained=True, **arguments)
    except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's exceptions
        raise TrainError(
            f"backbone {info.name!r}: its weights could not be had from the hub ({_line(error)}); "
            f"for a local file: {info.architecture}@PATH.safetensors"
        ) from error


def read_weights(info: BackboneInfo) -> dict[str, torch.Tensor]:
    """The tensors as they are stored.

    Raises
    ------
    TrainError
        If the file is missing, damaged, no table of tensors, or holds what is not finite; pickled objects are refused.
    """
    import numpy as np
    import torch

    if info.weights == "hub":
        return _from_hub(info, {**describe(info.name).arguments, "num_classes": 0}).state_dict()
    path = Path(info.weights)
    if not path.is_file():
        raise TrainError(f"backbone {info.name!r}: its weights {path.name} are missing from the installation")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                state = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever their parsers stumble on
        raise TrainError(f"backbone {info.name!r}: {path} does not read ({_line(error)})") from error
    while isinstance(state, dict) and (inner := next((w for w in WRAPPERS if isinstance(state.get(w), dict)), None)):
        state = state[inner]
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise TrainError(f"backbone {info.name!r}: {path} holds no table of named tensors")
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise TrainError(f"backbone {info.name!r}: {path}: tensor {key} has values that are not finite")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _unfit(info: BackboneInfo, error: Exception) -> str:
    return f"backbone {info.name!r}: the weights of {info.weights} do not fit {info.architecture} ({_line(error)})"


def _line(error: Exception, most: int = 240) -> str:
    """The text of an exception on one line, cut to a readable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."
