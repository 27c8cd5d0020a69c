"""An opened run folder: its specification, metrics and history, and the network as it was when training ended."""

from __future__ import annotations

import csv
import html
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.errors import TrainError
from train.methods import get, unknown
from train.spec import SCHEMA, RunSpec

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from matplotlib.axes import Axes
    from torch import nn

    from train.tasks import Task

RECORD = "run.json"
TRAINED = "trained.safetensors"
LOWBIT = "adapter.lowbit"
RESUME = "resume.safetensors"
HISTORY = "history.csv"
FIELDS = {"schema", "spec", "status", "fingerprints", "classes", "image_size", "device"}
WEIGHTS = ("deployed", "latent")


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run folder on disk. Made by ``Run.open``, or by ``train.loop.fit`` when training is done.

    Parameters
    ----------
    path
        The folder.
    record
        What ``run.json`` holds.
    given_task
        A loaded task to use in place of loading the one that the specification names.
    """

    path: Path
    record: dict[str, Any]
    given_task: Task | None = None

    @classmethod
    def open(cls, path: Path | str, *, task: Task | None = None, backbone: str | None = None) -> Run:
        """Open a run folder (or a file in it).

        ``task`` and ``backbone`` say where data and weights lie that were moved since training: their content is
        compared with what was trained on when it is first used.

        Raises
        ------
        TrainError
            If there is no run, or its record is damaged or of another version.
        """
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        try:
            record = json.loads((folder / RECORD).read_text())
        except FileNotFoundError:
            raise TrainError(f"expected a run folder with {RECORD}, found none at {path}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise TrainError(f"{folder / RECORD}: expected JSON, found a damaged file ({error})") from None
        lacking = FIELDS - set(record if isinstance(record, dict) else ())
        if lacking:
            raise TrainError(f"{folder / RECORD}: expected a run's record, found none of {', '.join(sorted(lacking))}")
        if record["schema"] != SCHEMA:
            raise TrainError(f"{folder / RECORD}: expected schema {SCHEMA}, found {record['schema']!r}")
        run = cls(path=folder, record=record, given_task=task)
        try:
            if backbone is not None:
                record["spec"] = {**record["spec"], "backbone": backbone}
            whole = isinstance(run.metrics, dict) and isinstance(record["device"], dict)
            whole = whole and all(map(str, run.classes)) and all(map(str.isalnum, record["fingerprints"].values()))
            damaged = "" if whole and run.spec else "a field of another kind"
        except (TypeError, ValueError, AttributeError) as error:
            damaged = str(error)
        if damaged:
            raise TrainError(f"{folder / RECORD}: expected a run's record, found a damaged one ({damaged})")
        return run

    @cached_property
    def spec(self) -> RunSpec:
        """What was trained, on what and how."""
        return RunSpec.from_dict(self.record["spec"])

    @property
    def status(self) -> str:
        """``running``, ``done``, ``cancelled`` or ``failed``."""
        return self.record["status"]

    @property
    def metrics(self) -> dict[str, Any]:
        """Losses in nats, accuracies, sizes in bytes; empty until training is done."""
        return self.record.get("metrics", {})

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return tuple(self.record["classes"])

    @property
    def bytes(self) -> int:
        """Size on disk of what would be shipped: ``adapter.lowbit``, or ``trained.safetensors`` where there is none."""
        return (self.path / (LOWBIT if (self.path / LOWBIT).exists() else TRAINED)).stat().st_size

    @property
    def history(self) -> pd.DataFrame:
        """A row an epoch: epoch, lr, train_loss_nats, val_loss_nats, val_accuracy, seconds."""
        import pandas as pd

        with (self.path / HISTORY).open(newline="") as file:  # float() gives back the same bits
            rows = [{name: float(text or "nan") for name, text in row.items()} for row in csv.DictReader(file)]
        return pd.DataFrame(rows).astype({"epoch": int})

    def task(self) -> Task:
        """The data that was trained on; a TrainError if it is not there any more or not the same."""
        return self._task

    def tensors(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (N, 3, S, S) float32 and labels (N,) of ``train``, ``val``, ``test`` or ``train+val``, prepared."""
        from train.build import tensors

        return tensors(self.spec, self.task(), split)

    def model(self, weights: str = "deployed", device: str = "cpu") -> nn.Module:
        """The trained network in eval mode, a new one at each call.

        Parameters
        ----------
        weights
            ``deployed``: what the shipped file holds, low-bit matrices as plain linear layers with their dequantised
            values. ``latent``: low-bit layers with the full-precision weights that training keeps behind them. Both
            give the same logits.
        device
            Where to put it.

        Raises
        ------
        TrainError
            If training is not done, a file is damaged, or the backbone is not the one trained on.
        """
        from train.build import build, device_of, load_into

        if weights not in WEIGHTS:
            raise TrainError(unknown("weights", weights, list(WEIGHTS)))
        place = device_of(device)
        self._require_done()
        if weights == "deployed" and self.spec.bits < 32 and not (self.path / LOWBIT).exists():
            raise TrainError(f"{self.path / LOWBIT}: expected the weights of {self.spec.bits} bits, found no file")
        self._check_backbone()
        model = build(self.spec, len(self.classes))
        if weights == "deployed" and (self.path / LOWBIT).exists():
            from quant.fake import bake
            from quant.lowbit import read_lowbit

            model = bake(model)
            lowbit = read_lowbit(self.path / LOWBIT)
            found, expected = lowbit.header.get("backbone_hash"), self.record["fingerprints"].get("backbone")
            if found != expected:
                raise TrainError(
                    f"{self.path / LOWBIT}: made for another backbone, {found!r}, than its run's {expected!r}"
                )
            stored = {t.name: t.dense() for t in lowbit.tensors}
            self._check_tensors(stored, model, LOWBIT)
            load_into(model, stored, str(self.path / LOWBIT))
        else:
            state = self.trained_state()
            self._check_tensors(state, model, TRAINED)
            load_into(model, state, str(self.path / TRAINED))
        return model.to(place).eval()

    def trained_state(self) -> dict[str, torch.Tensor]:
        """The trained tensors by name: latent weights and head, or the whole network with its running statistics.

        Raises
        ------
        TrainError
            If training is not done or the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self._require_done()
        path = self.path / TRAINED
        try:
            return load_file(path)
        except (SafetensorError, FileNotFoundError) as error:
            raise TrainError(f"{path}: expected trained tensors, found a damaged file ({error})") from None

    def initial_state(self) -> dict[str, torch.Tensor]:
        """The same tensors before the first step, drawn again from the seed."""
        from train.build import build

        self._check_backbone()
        model = build(self.spec, len(self.classes))
        own = model.state_dict()
        return {name: own[name].clone() for name in get(self.spec.method).kept(model)}

    def verify(self, split: str = "val") -> bool:
        """Whether the network built from disk gives bit for bit the logits (val or test) of the end of training.

        Promised on the same type of device and number of threads; both are in ``run.json``.

        Raises
        ------
        TrainError
            If no logits of that split were recorded.
        """
        from train.build import predict, score

        recorded = self.metrics.get(f"{split}_logits_sha256")
        if recorded is None:
            raise TrainError(f"{self.path}: no logits of {split!r} were recorded; protocol {self.spec.protocol}")
        inputs, labels = self.tensors(split)
        device = self.record["device"]["name"]
        return score(predict(self.model(device=device), inputs), labels).logits_sha256 == recorded

    def labels(self) -> dict[str, Any]:
        """The columns that tell several runs apart in a table."""
        spec = self.spec
        return {
            "task": spec.task_name,
            "label": spec.label,
            "method": spec.method,
            "dim": spec.dim,
            "bits": spec.bits,
            "seed": spec.seed,
            "run": self.path.name,
        }

    def to_frame(self) -> pd.DataFrame:
        """One row: the label columns, the status and the metrics."""
        import pandas as pd

        return pd.DataFrame([{**self.labels(), "status": self.status, **self.metrics}])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the training loss against the epoch."""
        from figures.history import plot

        return plot(self.history.assign(**self.labels()), ax)

    def _repr_html_(self) -> str:
        rows = {"run": self.path.name, **self.labels(), "status": self.status, **self.metrics}
        cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
        return f"<table>{cells}</table>"

    def check(self, fingerprints: dict[str, str]) -> None:
        """Compare fingerprints of data and backbone with those recorded.

        Raises
        ------
        TrainError
            If one differs.
        """
        for what, found in fingerprints.items():
            expected = self.record["fingerprints"].get(what)
            if expected != found:
                raise TrainError(
                    f"{self.path}: trained with another {what}: expected fingerprint {str(expected)[:16]}, found "
                    f"{found[:16]}; give the same {what}, or train into another folder"
                )

    @cached_property
    def _task(self) -> Task:
        from train.build import load_task

        task = self.given_task if self.given_task is not None else load_task(self.spec, self.record["image_size"])
        self.check({"data": task.fingerprint})
        return task

    def _check_backbone(self) -> None:
        from train.build import backbone_hash

        self.check({"backbone": backbone_hash(self.spec)})

    def _check_tensors(self, stored: dict[str, torch.Tensor], model: nn.Module, file: str) -> None:
        """Whether a file holds every trained tensor and no other, all of finite values.

        Raises
        ------
        TrainError
            If it does not; the first tensor is named.
        """
        wanted = set(get(self.spec.method).kept(model))
        for name in sorted(wanted ^ set(stored)):
            what = "lacks the trained" if name in wanted else "holds the untrained"
            raise TrainError(f"{self.path / file} {what} tensor {name}: it is not this run's")
        for name, tensor in stored.items():
            if not bool(tensor.isfinite().all()):
                raise TrainError(f"{self.path / file}: {name} has values that are not finite")

    def _require_done(self) -> None:
        if self.status != "done":
            raise TrainError(
                f"{self.path}: expected a finished run, found one that is {self.status}: train it to its end"
            )
