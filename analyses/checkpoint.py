"""A checkpoint on a command line, opened: which model it is, on which data, and which of its tensors may move.

Taken: a run folder of ``python -m train`` (or a file of its own), ``.safetensors`` or ``.pth`` weights of a whole timm
model together with ``--backbone`` and ``--task``, and adapters that lie alone (:mod:`analyses.adapters`).
"""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from analyses.adapters import is_adapter, open_adapter
from analyses.errors import AnalysisError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from analyses.options import BatchNorm, Gauge, Options, Weights
    from landscape.objective import Objective
    from landscape.space import Space
    from train.run import Run
    from train.spec import RunSpec
    from train.tasks import Task, Transform

SPACES = ("factors", "merged", "full")
WEIGHTS = (".safetensors", ".pth", ".pt")
OF_A_RUN = ("run.json", "trained.safetensors", "adapter.lowbit")
"""Files that stand for the run whose folder they lie in."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A fine-tuned model with its data.

    Attributes
    ----------
    path, label, method, dim, bits, seed
        Where it lies, its name in a legend (the same for all seeds), and how it was trained (``dim`` 0 and ``bits`` 32
        where the method has none).
    model
        The deployed network in eval mode: quantised tensors at the values they are stored with.
    task, transform
        The data, and how an image becomes an input.
    run
        The run folder, if it is one.
    identity
        What tells this checkpoint from any other: part of the key of its tables.
    """

    path: Path
    label: str
    method: str
    dim: int
    bits: int
    seed: int
    model: torch.nn.Module
    task: Task
    transform: Transform
    identity: str
    run: Run | None = None

    @property
    def folder(self) -> Path:
        """Where the tables of an analysis of this checkpoint alone go: the run, unless it is read only."""
        if self.run and os.access(self.path, os.W_OK):
            return self.path
        return Path("analysis") / (self.path.name if self.run else f"{self.path.stem}-{self.identity[:8]}")

    def labels(self) -> dict[str, object]:
        """The columns that say which model a row is about."""
        if self.run:
            return {**self.run.labels(), "label": self.label}
        return {
            "task": self.task.name,
            "label": self.label,
            "method": self.method,
            "dim": self.dim,
            "bits": self.bits,
            "seed": self.seed,
            "run": self.path.name,
        }

    @property
    def low_bit(self) -> bool:
        """Whether weights of it are stored in fewer than 32 bits."""
        return self.run is not None and min(self.run.spec.bits, self.run.spec.head_bits) < 32

    def spaces(self, weights: Weights = "values") -> list[str]:
        """The spaces (NUMERICS 11) in which this model can move, the method's own first."""
        from train.methods import get

        if self.method in ("full", "linear"):
            return ["full"]
        merged = get(self.method).linear and weights == "values"
        return ["factors", "merged", "full"] if merged else ["factors", "full"]

    def space(
        self,
        kind: str,
        *,
        head: bool = False,
        gauge: Gauge = "as-trained",
        weights: Weights = "values",
        vectors: Literal["zero", "vector", "element"] = "zero",
        batch_norm: BatchNorm = "freeze",
    ) -> Space:
        """The space of that kind, on the network of :meth:`network`; a 32-bit model moves by its values.

        Raises
        ------
        AnalysisError
            As for the network, and for a mode of running statistics of a network that has none.
        """
        from landscape.batchnorm import statistics
        from landscape.space import Policy, Space

        model, names = self.network(kind, head=head, gauge=gauge, weights=weights)
        if batch_norm != "freeze" and not statistics(model):
            raise AnalysisError(f"{self.label} has no BatchNorm with running statistics: leave out --batch-norm")
        if batch_norm == "perturb" and vectors == "zero":
            raise AnalysisError("running statistics move as vectors do: --batch-norm perturb needs --vectors")
        policy = Policy(bias_and_norm=vectors)
        kept = weights if self.low_bit else "values"
        return Space(model, names, kind=kind, policy=policy, head=head, weights=kept, batch_norm=batch_norm)

    def network(
        self, space: str, *, head: bool = False, gauge: Gauge = "as-trained", weights: Weights = "values"
    ) -> tuple[torch.nn.Module, list[str]]:
        """The model and the names of its tensors that move in ``space``.

        Parameters
        ----------
        space, head
            ``factors``, ``merged`` or ``full``; whether the head moves too.
        gauge
            Which of the pairs of low-rank factors with one product moves (NUMERICS 9): the one that training ended at,
            or the balanced one, which does not depend on it.
        weights
            What of a low-bit model moves (NUMERICS 13): the values that it is stored with, or its latent weights, which
            are quantised again in every pass. Of a 32-bit model the two are one.

        Raises
        ------
        AnalysisError
            If the method has no such space (``merged`` with a nonlinearity between the factors), or nothing moves; if
            it has no balanced gauge, or its codes would change by it; if merged matrices should be quantised again.
        """
        from train.methods import get, head_names

        if space not in SPACES:
            raise AnalysisError(f"unknown space {space!r}; there are {', '.join(SPACES)}")
        method = get(self.method)
        model = self._latent() if weights == "requantised" and self.low_bit else self.model
        heads = head_names(model)
        own = [name for name, _ in model.named_parameters() if name not in heads]
        if space == "merged":
            if not method.linear:
                raise AnalysisError(f"{self.method} has a nonlinearity between its factors, so it has no merged space")
            if weights == "requantised":
                raise AnalysisError("merged matrices are not stored in low bits: they move by their values")
            model = method.merge(model)
            own = list(method.merged_names(model))
        elif gauge == "balanced" and method.has_adapter:
            model = self._balanced()
        if space == "factors" and self.method != "full":
            own = list(method.adapter_names(model))
        if head:
            own += heads
        if not own:
            raise AnalysisError(f"{self.label} has no tensor that moves in space {space!r}; --head moves its head")
        return model, own

    def _latent(self) -> torch.nn.Module:
        assert self.run is not None
        return self.run.model("latent", device=str(next(self.model.parameters()).device))

    def _balanced(self) -> torch.nn.Module:
        from train.methods import get

        if not get(self.method).linear:
            raise AnalysisError(
                f"{self.method} has a nonlinearity between its factors, so they have no balanced gauge: --gauge "
                "as-trained"
            )
        if self.bits < 32:
            raise AnalysisError(
                f"{self.label}: balancing low-bit factors would change their codes, and the function with them: "
                "--gauge as-trained"
            )
        return get(self.method).balanced(self.model)

    @functools.cache  # noqa: B019  (a checkpoint lives as long as its analysis)
    def data(self, split: str, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first ``samples`` images of a fixed shuffle of a split, and labels: equal for all models of a task."""
        import torch

        chosen = np.random.default_rng(0).permutation(len(self.task.labels(split)))[:samples]
        inputs, labels = self.task.tensors(split, self.transform)
        rows = torch.from_numpy(np.sort(chosen))
        return inputs[rows], labels[rows]

    def objectives(self, model: torch.nn.Module, splits: Sequence[str], options: Options) -> dict[str, Objective]:
        """The loss of ``model`` on the same images for every model of the task, one objective a split."""
        from landscape.objective import Objective

        return {
            split: Objective(
                model, *self.data(split, options.samples), batch_size=options.batch_size, device=options.device
            )
            for split in splits
        }


def open_checkpoint(path: Path, options: Options) -> Checkpoint:
    """Open what a person named on the command line.

    Raises
    ------
    AnalysisError
        If it is none of the kinds this toolkit takes, or what it needs beside it was not given.
    """
    path = Path(path)
    if not path.exists():
        raise AnalysisError(f"no such checkpoint: {path}")
    folder = path if path.is_dir() else path.parent
    # A run's own files of weights stand for it; another file beside them is for itself.
    if (folder / "run.json").is_file() and (path.is_dir() or path.name in OF_A_RUN):
        return _from_run(folder, options)
    if path.is_file() and path.suffix in WEIGHTS:
        return _from_weights(path, options)
    if is_adapter(path):
        return open_adapter(path, options)
    what = "a folder without run.json" if path.is_dir() else f"a {path.suffix or 'plain'} file"
    raise AnalysisError(
        f"{path} is {what}; a checkpoint is a run folder, a .lowbit file, a .bin of the paper beside its YAML, a peft "
        f"folder, or {', '.join(WEIGHTS)} weights with --backbone and --task"
    )


def open_all(paths: Sequence[Path], options: Options) -> tuple[list[Checkpoint], Path]:
    """Open every checkpoint; also where their tables go: ``--out``, else below a single run, else ``./analysis``.

    Raises
    ------
    AnalysisError
        If there is none, or two cannot be compared.
    """
    if not paths:
        raise AnalysisError("expected at least one checkpoint")
    opened = distinguished([open_checkpoint(path, options) for path in paths])
    comparable(opened)
    return opened, options.out or (opened[0].folder if len(opened) == 1 else Path("analysis"))


def comparable(checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse checkpoints whose rows would be mixed up, or whose numbers do not speak of the same inputs (NUMERICS 5).

    Raises
    ------
    AnalysisError
        For the first two of one name, of one task with different images, splits or transforms, or of one label of
        which one is no run.
    """
    by_name: dict[str, Checkpoint] = {}
    by_task: dict[str, Checkpoint] = {}
    by_label: dict[tuple[object, str], Checkpoint] = {}
    for c in checkpoints:
        first = by_name.setdefault(c.path.name, c)
        if first is not c:
            raise AnalysisError(
                f"{first.path} and {c.path} have one name: rename one, so that tables can tell them apart"
            )
        first = by_task.setdefault(c.task.name, c)
        if first.task.fingerprint != c.task.fingerprint:
            raise AnalysisError(f"{first.path} and {c.path} saw different images or splits; they cannot be compared")
        if first.transform != c.transform:
            raise AnalysisError(
                f"{first.path} and {c.path} transform their images differently; they cannot be compared"
            )
        first = by_label.setdefault((c.labels()["task"], c.label), c)
        if not (first.run and c.run) and first.identity != c.identity:
            raise AnalysisError(
                f"{first.path} and {c.path} are both {c.label!r}: rename one, so that figures can tell them apart"
            )


def distinguished(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The same, where runs of one label differ in more than their seed with what they differ in after the label."""
    alike: dict[tuple[object, str], list[dict[str, Any]]] = {}
    for c in checkpoints:
        if c.run:
            alike.setdefault((c.labels()["task"], c.label), []).append(_training(c.run.spec))
    found = []
    for c in checkpoints:
        if c.run:
            own, others = _training(c.run.spec), alike[c.labels()["task"], c.label]
            said = [f"{name} {own[name]}" for name in own if any(other[name] != own[name] for other in others)]
            c = replace(c, label=", ".join([c.label, *said]))
        found.append(c)
    return found


def _training(spec: RunSpec) -> dict[str, Any]:
    """How a run was trained but for its seed, with the learning rate that its method takes of the recipe."""
    settings = spec.to_dict() | spec.recipe.to_dict() | {"lr": spec.recipe.base_lr(spec.method)}
    return {name: value for name, value in settings.items() if name not in ("recipe", "lr_for", "seed")}


def identity(run: Run) -> str:
    """What tells a run from any other: its specification and data, and the bytes that training left."""
    from figures.tables import key_of

    trained = hashlib.sha256((run.path / "trained.safetensors").read_bytes()).hexdigest()
    return key_of({"spec": run.spec.hash, "fingerprints": run.record["fingerprints"], "trained": trained})


def _from_run(folder: Path, options: Options) -> Checkpoint:
    from train.build import load_task, transform
    from train.run import Run

    run, backbone = Run.open(folder), options.backbone
    if backbone is not None and _architecture(backbone) != _architecture(run.spec.backbone):
        warnings.warn(f"{folder} is of {run.spec.backbone}: --backbone {backbone} is left to others", stacklevel=2)
        backbone = None
    task = None
    if options.task is not None:
        task = load_task(replace(run.spec, task=options.task), run.record["image_size"])
    run = Run.open(folder, task=task, backbone=backbone)
    spec = run.spec
    return Checkpoint(
        path=folder,
        label=spec.label,
        method=spec.method,
        dim=spec.dim,
        bits=spec.bits,
        seed=spec.seed,
        model=run.model("deployed", device=options.device),
        task=run.task(),
        transform=transform(spec),
        identity=identity(run),
        run=run,
    )


def _architecture(backbone: str) -> str:
    """Of ``NAME@PATH`` or ``NAME.TAG``, the name."""
    return backbone.partition("@")[0].partition(".")[0]


def _from_weights(path: Path, options: Options) -> Checkpoint:
    from figures.tables import key_of
    from train.backbones import content_hash, create, describe, read_weights
    from train.build import device_of, load_into
    from train.tasks import load

    if options.backbone is None or options.task is None:
        given = {"--backbone": options.backbone, "--task": options.task}
        missing = " and ".join(flag for flag, value in given.items() if value is None)
        raise AnalysisError(f"{path.name} holds weights alone: {missing} should say what they belong to")
    name = options.backbone.removeprefix("random:")
    info = describe(f"{name}@{path}", img_size=options.img_size)
    state = read_weights(info)
    task = load(options.task, train_size=options.train_size, size=info.img_size)
    model = create(f"random:{name}", len(task.classes), img_size=options.img_size)
    load_into(model, state, path.name, whole=True)
    return Checkpoint(
        path=path,
        label=path.stem,
        method="full",
        dim=0,
        bits=32,
        seed=0,
        model=model.to(device_of(options.device)).eval(),
        task=task,
        transform=info.transform(),
        identity=key_of(
            {
                "weights": content_hash(state, ()),
                "backbone": name,
                "data": task.fingerprint,
                "transform": info.transform().describe(),
            }
        ),
    )
