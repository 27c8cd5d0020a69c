"""Train one run, from its specification to a finished folder; a run that was killed goes on to the same bits.

Each epoch ends with an atomic write of the whole position (``train.state``); what comes later draws only on that. The
metrics are those of the network rebuilt from the finished files, after its logits were found bit-equal to the ones of
training (NUMERICS 26).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from quant.fake import trained
from train import build as parts
from train import state as states
from train.build import Cache, Score, predict, score, stream
from train.errors import TrainError
from train.files import sizes, write_weights
from train.folder import alone, circumstances, earlier, same_circumstances, sweep, write_record
from train.methods import get, head_names
from train.run import HISTORY, RESUME, Run
from train.spec import SCHEMA, RunSpec
from train.tasks import Task


def fit(
    spec: RunSpec,
    task: Task,
    out_root: Path | str,
    *,
    device: str = "cpu",
    quiet: bool = False,
    command: str | None = None,
    cache: Cache | None = None,
) -> Run:
    """Train ``spec`` on ``task`` into a folder below ``out_root``, or find it there, finished or to be continued.

    Parameters
    ----------
    spec, task
        What to train, and the loaded data that the specification names.
    out_root
        The folder of run folders; made if missing.
    device
        ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    quiet
        No progress bar on stderr.
    command
        The command line to record; this process's own if None.
    cache
        A dictionary to share between calls on the same task: prepared inputs are kept in it and used again.

    Raises
    ------
    TrainError
        If the task is not the specified one, data or backbone are not those of the run found there, the network and
        the method do not fit, there are fewer images than a batch, or the loss is no longer finite.
    """
    place = parts.device_of(device)
    if ":" not in spec.task and task.name != spec.task:
        raise TrainError(f"expected the task {spec.task!r} that the specification names, found {task.name!r}")
    for bits in {spec.bits, spec.head_bits} - {32}:
        trained(spec.quantizer, bits)  # a QuantError before anything is written
    folder = Path(out_root) / spec.name
    fingerprints = {"data": task.fingerprint, "backbone": parts.backbone_hash(spec)}
    facts = {"fingerprints": fingerprints, **circumstances(spec, place, command)}
    with alone(folder):
        before = earlier(folder, spec, task, fingerprints)
        if before and before.status == "done":
            sweep(folder)
            return before
        if before and (folder / RESUME).exists():
            same_circumstances(before, facts)
        return _train(spec, task, folder, place, facts, quiet, cache)


def _train(
    spec: RunSpec,
    task: Task,
    folder: Path,
    place: torch.device,
    facts: dict[str, Any],
    quiet: bool,
    cache: Cache | None,
) -> Run:
    """Train to the end, from the start or from where the folder says; a folder that says what became of it."""
    record = {
        "schema": SCHEMA,
        "name": spec.name,
        "status": "running",
        "spec": spec.to_dict(),
        "classes": list(task.classes),
        "image_size": task.size,
        "counts": dict(task.counts),
        **facts,
    }
    write_record(folder, record)
    sweep(folder, keep=RESUME)
    training = _Training(spec=spec, task=task, folder=folder, device=place, quiet=quiet, cache=cache)
    try:
        with parts.seeded(stream(spec.seed, "dropout"), place):
            metrics, seconds = training.run(record)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        record |= {"status": "cancelled" if stopped else "failed", "error": " ".join(str(error).split())}
        with contextlib.suppress(OSError):  # a full disk must not hide the error itself
            write_record(folder, record)
        raise
    write_record(folder, {**record, "status": "done", "metrics": metrics, "seconds": seconds})
    sweep(folder)
    return Run.open(folder, task=task)


@dataclass(kw_only=True)
class _Training:
    """One call of ``fit``: the data, the network and where it stands."""

    spec: RunSpec
    task: Task
    folder: Path
    device: torch.device
    quiet: bool
    cache: Cache | None

    def run(self, record: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """Train to the end, write the files and judge what they hold; return metrics and seconds.

        Raises
        ------
        TrainError
            If there are fewer images than a batch.
        """
        spec, recipe = self.spec, self.spec.recipe
        fit_on = "train" if spec.protocol == "validation" else "train+val"
        inputs, labels = (t.to(self.device) for t in parts.tensors(spec, self.task, fit_on, self.cache))
        if len(inputs) < recipe.batch_size:
            raise TrainError(
                f"{self.task.name}: expected at least one batch of {recipe.batch_size} images to train on, "
                f"found {len(inputs)}: raise train_size"
            )
        model = parts.build(spec, len(self.task.classes)).to(self.device)
        method, own = get(spec.method), model.state_dict(keep_vars=True)
        weights = {name: own[name] for name in method.kept(model)}
        optimizer = torch.optim.AdamW(
            [own[name] for name in method.trainable(model)],
            lr=recipe.base_lr(spec.method),
            weight_decay=recipe.weight_decay,
        )
        order = torch.Generator().manual_seed(stream(spec.seed, "order"))
        at = states.State()
        if (self.folder / RESUME).exists():
            at = states.load(self.folder / RESUME, weights, optimizer, order, self.device)
        steps = len(inputs) // recipe.batch_size
        with self._bar(recipe.epochs * steps, at.epoch * steps) as bar:
            while at.epoch < recipe.epochs:
                started = time.perf_counter()
                rate = recipe.learning_rate(at.epoch, spec.method)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss = self._epoch(model, optimizer, inputs, labels, torch.randperm(len(inputs), generator=order), bar)
                self._judge(model, weights, at, rate, loss)
                at.history[-1]["seconds"] = time.perf_counter() - started
                at.seconds += at.history[-1]["seconds"]
                at.epoch += 1
                bar.set_postfix_str(_scores(at))
                self._write_history(at)
                states.save(self.folder / RESUME, at, weights, optimizer, order, self.device)
        parts.load_into(model, at.best_weights, "the selected epoch")
        write_weights(self.folder, model, list(weights), record)
        return self._metrics(record, at, fit_on), at.seconds

    def _epoch(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        order: torch.Tensor,
        bar: Any,
    ) -> float:
        """One pass over whole batches in the given order; the mean loss of its steps, in nats.

        Raises
        ------
        TrainError
            If the loss is no longer finite.
        """
        get(self.spec.method).train(model)
        batch = self.spec.recipe.batch_size
        steps = len(order) // batch
        total = torch.zeros((), dtype=torch.float64, device="cpu" if self.device.type == "mps" else self.device)
        order = order.to(self.device)
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            loss = F.cross_entropy(model(inputs[rows]), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach().to(total.device, torch.float64)
            bar.update()
        mean = float(total) / steps
        if not math.isfinite(mean):
            raise TrainError(f"training diverged: the loss is {mean}; lower the learning rate or the scale")
        return mean

    def _judge(
        self, model: nn.Module, weights: Mapping[str, torch.Tensor], at: states.State, rate: float, loss: float
    ) -> None:
        """Score the epoch that just ended, add its row, and keep its weights if it is the one selected so far.

        ``validation``: highest accuracy on val, the lower loss among equals, the earlier among those. ``paper``: the
        last epoch; after each tenth of training the test accuracy is read as well.

        Raises
        ------
        TrainError
            If the loss on what it is judged by is no longer finite.
        """
        row: dict[str, Any] = {"epoch": at.epoch, "lr": rate, "train_loss_nats": loss}
        row |= {"val_loss_nats": math.nan, "val_accuracy": math.nan}
        selected = False
        found: Score | None = None
        if self.spec.protocol == "validation":
            found = self._score(model, "val")
            row |= {"val_loss_nats": found.loss_nats, "val_accuracy": found.accuracy}
            best = (at.best["accuracy"], -at.best["loss_nats"]) if at.best else (-1.0, 0.0)
            selected = (found.accuracy, -found.loss_nats) > best
        else:
            last = self.spec.recipe.epochs
            if at.epoch + 1 in {math.ceil(last * tenth / 10) for tenth in range(1, 11)}:
                found = self._score(model, "test")
                at.test_seen = max(at.test_seen or 0.0, found.accuracy)
            selected = at.epoch + 1 == last
        if found is not None and not math.isfinite(found.loss_nats):
            raise TrainError(f"training diverged: the loss is {found.loss_nats}; lower the learning rate or the scale")
        at.history.append(row)
        if selected:
            assert found is not None
            at.best = {"epoch": at.epoch, **vars(found)}
            at.best_weights = {name: w.detach().clone() for name, w in weights.items()}

    def _score(self, model: nn.Module, split: str) -> Score:
        inputs, labels = parts.tensors(self.spec, self.task, split, self.cache)
        return score(predict(model, inputs), labels)

    def _write_history(self, at: states.State) -> None:
        import pandas as pd

        from figures.tables import write_text

        write_text(self.folder / HISTORY, pd.DataFrame(at.history).to_csv(index=False, lineterminator="\n"))

    def _metrics(self, record: dict[str, Any], at: states.State, fit_on: str) -> dict[str, Any]:
        """Judge the network that the files hold.

        Raises
        ------
        RuntimeError
            If its logits are not those of training: a defect, not the user's fault.
        """
        done = Run(path=self.folder, record={**record, "status": "done"}, given_task=self.task)
        model = done.model(device=str(self.device))
        scores = {"train": self._score(model, fit_on), "test": self._score(model, "test")}
        if self.spec.protocol == "validation":
            scores["val"] = self._score(model, "val")
        live, deployed = at.best["logits_sha256"], scores["val" if "val" in scores else "test"].logits_sha256
        if live != deployed:
            raise RuntimeError(f"the network in {self.folder} gives other logits than the one trained (NUMERICS 26)")
        metrics: dict[str, Any] = {}
        for split in ("train", "val", "test"):
            found = scores.get(split)
            metrics[f"{split}_loss_nats"] = found.loss_nats if found else None
            metrics[f"{split}_accuracy"] = found.accuracy if found else None
            if split != "train":
                metrics[f"{split}_logits_sha256"] = found.logits_sha256 if found else None
        if self.spec.protocol == "paper":
            metrics["best_test_accuracy_seen"] = at.test_seen
        metrics["selected_epoch"] = at.best["epoch"]
        trained = get(self.spec.method).trainable(model)
        return {**metrics, **sizes(self.folder, trained=trained, head=head_names(model))}

    def _bar(self, total: int, done: int) -> Any:
        from figures.command import progress

        bar = progress(total, desc=self.spec.name, quiet=self.quiet)
        bar.initial = bar.n = done  # what an earlier process did counts for the position, not for the speed
        return bar


def _scores(at: states.State) -> str:
    row = at.history[-1]
    seen = "" if math.isnan(row["val_accuracy"]) else f", val accuracy {row['val_accuracy']:.3f}"
    return f"loss {row['train_loss_nats']:.3f}{seen}"
