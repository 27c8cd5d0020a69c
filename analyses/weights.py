"""Weights by name from anything that holds some, without the model that they belong to.

Taken: a run folder (its latent weights), ``.lowbit``, ``.safetensors``, ``.pth``, ``.npz``, a peft folder, and the
``.bin`` of the low-bit adapter paper beside its YAML.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.errors import AnalysisError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from analyses.options import Options
    from quant.content import Lowbit
    from train.run import Run

SUFFIXES = (".lowbit", ".safetensors", ".pth", ".pt", ".npz", ".bin")
PAIRS = (
    ("down", "up"),
    ("adapter_down", "adapter_up"),
    ("lora_down", "lora_up"),
    ("lora_A", "lora_B"),
    ("lora_embedding_A", "lora_embedding_B"),
)
"""Last names of the modules of a pair of low-rank matrices."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """What a file or a run folder holds.

    Attributes
    ----------
    path, label, method, dim, bits, seed, task_name
        As of a checkpoint; empty or 0 where the file does not say.
    kind
        What it is, in words.
    tensors
        Floating-point tensors by name, those of the head left out where the file says which they are.
    initial
        The same before training, of those for which it is known.
    codes
        Codes of the tensors that are stored in few bits; their values are in ``tensors``.
    identity
        What tells it from any other.
    run
        The run folder, if it is one.
    """

    path: Path
    label: str
    kind: str
    tensors: Mapping[str, torch.Tensor]
    identity: str
    initial: Mapping[str, torch.Tensor] = field(default_factory=dict)
    codes: Mapping[str, torch.Tensor] = field(default_factory=dict)
    method: str = ""
    dim: int = 0
    bits: int = 32
    seed: int = 0
    task_name: str = ""
    run: Run | None = None

    @property
    def folder(self) -> Path:
        """Where the tables of this one alone go."""
        return self.path if self.run else Path("analysis") / f"{self.path.stem}-{self.identity[:8]}"

    def labels(self) -> dict[str, object]:
        """The columns that say what a row is about."""
        if self.run:
            return self.run.labels()
        return {
            "task": self.task_name,
            "label": self.label,
            "method": self.method,
            "dim": self.dim,
            "bits": self.bits,
            "seed": self.seed,
            "run": self.label,
        }

    @property
    def matrices(self) -> list[str]:
        """Names of the tensors of two axes and more, and more than one weight."""
        return [name for name, w in self.tensors.items() if w.dim() > 1 and w.numel() > 1]

    def levels(self, name: str) -> int:
        """How many values a tensor takes that is stored as codes, one a weight; 0 of any other."""
        codes = self.codes.get(name)
        return len(codes.unique()) if codes is not None and codes.shape == self.tensors[name].shape else 0

    def pairs(self) -> dict[str, tuple[str, str]]:
        """Names of the down and the up matrix of each low-rank pair, by the module that both are in."""
        return low_rank_pairs(self.tensors)


def low_rank_pairs(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, str]]:
    """Names of the down (h, ...) and the up (..., h) matrix of each pair that fits, by the module that both are in."""
    found = {}
    for down_name, w in tensors.items():
        for down, up in PAIRS:
            up_name = re.sub(rf"(?<![A-Za-z0-9_]){down}(?=\.(?:[A-Za-z0-9_]+\.)?weight$|$)", up, down_name)
            other = tensors.get(up_name)
            if up_name == down_name or other is None or min(w.dim(), other.dim()) < 2:
                continue
            if w.numel() > 1 and w.shape[0] == other.flatten(1).shape[1]:
                found[re.sub(rf"\.?{down}(\.|$).*", "", down_name) or down_name] = (down_name, up_name)
    return found


def open_weights(paths: Sequence[Path], options: Options) -> tuple[list[Held], Path]:
    """Open each; also where the joined tables go: ``--out``, else below a single run, else ``./analysis``.

    Raises
    ------
    AnalysisError
        If there is none, one is of no kind that is taken, holds no matrix or values that are not finite, or two have
        one name.
    """
    if not paths:
        raise AnalysisError("expected at least one checkpoint or file of weights")
    opened = [_open(Path(path), options) for path in paths]
    for held in opened:
        if not held.matrices:
            raise AnalysisError(f"{held.path} ({held.kind}) holds no matrix but its head's")
        for name in held.matrices:
            if not bool(held.tensors[name].isfinite().all()):
                raise AnalysisError(f"{held.path}: {name} has values that are not finite")
    labels = [held.labels()["run"] for held in opened]
    opened = [
        held if labels.count(name) == 1 or held.run else replace(held, label=f"{held.path.parent.name}/{held.label}")
        for held, name in zip(opened, labels, strict=True)
    ]
    names = [held.labels()["run"] for held in opened]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise AnalysisError(f"two of them have one name, {twice}: rename one, so that tables can tell them apart")
    alone = opened[0].folder if opened[0].run else None
    return opened, options.out or (alone if len(opened) == 1 and alone else Path("analysis"))


def of_run(run: Run) -> Held:
    """The latent weights of a run, the head left out; their initial values drawn again from its seed."""
    from analyses.checkpoint import identity
    from train.backbones import describe
    from train.errors import TrainError

    tensors = run.trained_state()
    try:
        heads = describe(run.spec.backbone, img_size=run.spec.img_size).head
        initial, unknown = run.initial_state(), ""
    except (TrainError, OSError) as error:
        heads, initial, unknown = ("head",), {}, f"; initial weights unknown: {error}"
    prefixes = tuple(f"{head}." for head in heads)
    key = identity(run)
    return Held(
        path=run.path,
        label=run.spec.label,
        kind=f"a run's latent weights{unknown}",
        tensors={n: w for n, w in tensors.items() if not n.startswith(prefixes) and w.is_floating_point()},
        initial=initial,
        identity=f"{key}-uninitialised" if unknown else key,
        method=run.spec.method,
        dim=run.spec.dim,
        bits=run.spec.bits,
        seed=run.spec.seed,
        task_name=run.spec.task_name,
        run=run,
    )


def _open(path: Path, options: Options) -> Held:
    from quant.lowbit import read_lowbit
    from quant.peft import CONFIG, WEIGHTS, is_peft, read_peft
    from quant.petl import config_beside, read_petl
    from train.run import Run

    if not path.exists():
        raise AnalysisError(f"no such checkpoint: {path}")
    folder = path if path.is_dir() else path.parent
    if (folder / "run.json").is_file():
        return of_run(Run.open(folder, backbone=options.backbone))
    if path.is_dir():
        if not is_peft(path):
            raise AnalysisError(f"{path} is a folder without run.json or {CONFIG}; {_taken()}")
        return _of_lowbit(path, read_peft(path), "a peft folder", [path / CONFIG, path / WEIGHTS])
    if path.suffix == ".lowbit":
        return _of_lowbit(path, read_lowbit(path), "a .lowbit file", [path])
    if path.suffix == ".bin":
        config = config_beside(path)
        return _of_lowbit(path, read_petl(path, config), "a .bin of the paper", [path, config])
    if path.suffix not in SUFFIXES:
        raise AnalysisError(f"{path} is a {path.suffix or 'plain'} file; {_taken()}")
    tensors = {n: w for n, w in _read(path).items() if w.is_floating_point()}
    return Held(
        path=path,
        label=path.stem,
        kind=f"a {path.suffix} file, every matrix in it",
        tensors=tensors,
        initial=_backbone(options.backbone) if options.backbone else {},
        identity=_hash([path], options.backbone),
    )


def _of_lowbit(path: Path, lowbit: Lowbit, kind: str, files: list[Path]) -> Held:
    from quant.header import is_head

    own = [t for t in lowbit.tensors if not is_head(t.name, lowbit.header)]
    header = lowbit.header
    codes = {t.name: t.codes for t in own if t.codes is not None}
    two = " (1 bit: two values a matrix, so units and spectra speak, fits of laws do not)"
    bits = [t.bits for t in own if t.codes is not None] or [32]
    return Held(
        path=path,
        label=path.stem,
        kind=f"{kind}, values at codes{two if min(bits) == 1 else ''}" if codes else kind,
        tensors={t.name: t.dense() for t in own},
        codes=codes,
        identity=_hash(files, None),
        method=str(header.get("method", "lora" if "peft" in header else "")),
        dim=dim if isinstance(dim := header.get("dim"), int) else 0,  # a header may say anything
        bits=max(bits),  # as the header says it
        task_name=str(header.get("task", "")),
    )


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a file by name; those of nested dictionaries under names joined by dots.

    Raises
    ------
    AnalysisError
        If the file is damaged, or holds more than tensors.
    """
    import pickle
    import zipfile

    import numpy as np
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files if arrays[name].dtype.kind == "f"}
        return _flat(torch.load(path, map_location="cpu", weights_only=True))
    except (SafetensorError, zipfile.BadZipFile, pickle.UnpicklingError, ValueError, RuntimeError, EOFError) as error:
        why = " ".join(str(error).split())[:120]
        raise AnalysisError(f"{path}: expected tensors alone, found a damaged or another file ({why})") from None


def _flat(found: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    import torch

    tensors: dict[str, torch.Tensor] = {}
    for name, value in found.items() if isinstance(found, Mapping) else ():
        if isinstance(value, torch.Tensor):
            tensors[f"{prefix}{name}"] = value.detach()
        else:
            tensors |= _flat(value, f"{prefix}{name}.")
    return tensors


def _backbone(name: str) -> dict[str, torch.Tensor]:
    """The weights that fine-tuning began with, as ``--backbone`` names them."""
    from train.backbones import describe, read_weights

    info = describe(name)
    return dict(read_weights(info)) if info.weights != "random" else {}


def _hash(paths: list[Path], backbone: str | None) -> str:
    from figures.tables import key_of

    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return key_of({"files": digest.hexdigest(), "backbone": backbone})


def _taken() -> str:
    return f"weights are a run folder, a peft folder or one of {', '.join(SUFFIXES)}"
