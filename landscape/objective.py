"""A loss on fixed data in memory: the thing that a landscape is a landscape of.

The data are decoded and on the device once; every point sees the same samples in the same order (NUMERICS 5), in eval
mode (4), with per-sample losses reduced in float64 (6).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.evaluation import Evaluation
from landscape.guard import eval_mode, random_states
from landscape.output import cross_entropy, log_probs_of, logits_of

Inputs = Tensor | Mapping[str, Tensor] | Sequence[Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Result = TypeVar("Result")
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


def rows_of(device: torch.device) -> int:
    """Samples of one pass on a device: 64 on a processor, 256 elsewhere.

    On a processor, intermediate results stay near the caches, and small enough for its allocator to keep their memory:
    beyond 32 MiB glibc gives each back, and the pages of the next are cleared anew.
    """
    return 64 if device.type == "cpu" else 256


class Objective:
    """A model's loss on fixed data.

    Parameters
    ----------
    model
        Called as ``model(x)``, ``model(**x)`` or ``model(*x)`` for inputs that are a tensor, a dict or a tuple. Returns
        the logits, (N, C), or an object or dict with an entry ``logits``.
    inputs
        A tensor, or a dict or tuple of tensors, all with N rows; not copied, so they should stay as they are.
    targets
        (N,) class indices, (N, C) class probabilities, or whatever ``loss`` takes, with N rows.
    loss
        ``loss(logits, targets) -> (N,)``, one value a sample; default: cross entropy in nats, in float64.
    batch_size
        Samples a forward pass; default: as :func:`rows_of`. Halved, with a warning, when memory runs out.
    device
        Where the data are kept; default: where the model is. Batches go to the model's device as they are needed.

    Raises
    ------
    LandscapeError
        If inputs and targets are no tensors, empty, or differ in their number of rows.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        targets: Tensor,
        *,
        loss: Loss | None = None,
        batch_size: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        if batch_size is not None and batch_size < 1:
            raise LandscapeError(f"expected a batch size of at least 1, found {batch_size}")
        self.batch_size = batch_size or rows_of(self.device)
        self.halvings = 0
        self.graph_rows: int | None = None  # of a differentiable pass, once its graph has been measured
        self.checked = False
        self._kind = "dict" if isinstance(inputs, Mapping) else "tensor" if isinstance(inputs, Tensor) else "tuple"
        named: dict[str, Tensor] = (
            dict(inputs)
            if isinstance(inputs, Mapping)
            else {"0": inputs}
            if isinstance(inputs, Tensor)
            else {str(i): x for i, x in enumerate(inputs)}
        )
        _check_rows({**named, "targets": targets})
        keep = torch.device(device) if device is not None else self.device
        self.inputs = {name: x.detach().to(keep) for name, x in named.items()}
        self.targets = targets.detach().to(keep)

    def on(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Objective:
        """The same targets, loss and batch size on another model, with inputs named as :attr:`inputs`."""
        given = dict(inputs) if self._kind == "dict" else inputs["0"] if self._kind == "tensor" else [*inputs.values()]
        return Objective(model, given, self.targets, loss=self.loss, batch_size=self.batch_size)

    @property
    def device(self) -> torch.device:
        """Where the model is (and its logits will be)."""
        first = next(iter(self.model.parameters()), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def unit(self) -> str:
        """Of the loss: nats, or nothing where it is one of the user's own."""
        return "nats" if self.loss is None else ""

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.targets)

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 over names, dtypes, shapes and bytes of inputs and targets."""
        digest = hashlib.sha256()
        for name, tensor in [*sorted(self.inputs.items()), ("targets", self.targets)]:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def evaluate(self) -> Evaluation:
        """One pass over the data at the model's current weights, in eval mode, without gradients.

        ``no_grad`` and not ``inference_mode``: a module that caches a tensor of the pass (quantised weights, rotary
        tables) must be able to train on it afterwards.
        """
        with random_states(self.model), eval_mode(self.model), torch.no_grad():
            return self._pass()

    def check_deterministic(self) -> Evaluation:
        """Two passes; returns the first when the losses of both are equal bit for bit.

        Raises
        ------
        LandscapeError
            If they differ: something random is left in eval mode. Names the first module that gives two values.
        """
        with random_states(self.model), eval_mode(self.model), torch.no_grad():
            first = self._pass()
            while True:
                size = self.batch_size
                second = self._pass()
                if size == self.batch_size:
                    break
                first = second  # memory ran out in between: another batch size may round otherwise
            if not np.array_equal(first.loss, second.loss, equal_nan=True):
                largest = np.nanmax(np.abs(first.loss - second.loss))
                raise LandscapeError(
                    f"expected one loss for one input, found two that differ by up to {largest:.3g} in eval mode; "
                    f"first differing module: {self._random_module()} (dropout that ignores eval mode?)"
                )
        self.checked = True
        return first

    def _pass(self) -> Evaluation:
        return self.in_memory(self._forward)

    def in_memory(self, compute: Callable[[], Result]) -> Result:
        """What ``compute()`` gives, which goes through the data by :attr:`batch_size`; halved until memory suffices.

        Raises
        ------
        RuntimeError
            What ``compute`` raises, if it is none of memory, or one sample needs too much.
        """
        while True:
            try:
                return compute()
            except RuntimeError as error:
                if self.batch_size == 1 or not any(text in str(error).lower() for text in _OUT_OF_MEMORY):
                    raise
            # Outside the handler, whose traceback would keep the failed batch alive.
            self.batch_size = (self.batch_size + 1) // 2
            self.halvings += 1
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            warnings.warn(
                f"out of memory: batch size halved to {self.batch_size}; values agree with those of other batch sizes "
                "to rounding only",
                RuntimeWarning,
                stacklevel=3,
            )

    def _forward(self) -> Evaluation:
        losses = []
        outputs: Tensor | None = None
        for rows in self.batches():
            logits = self.logits(rows).detach()
            if outputs is None:  # filled batch by batch: joined at the end, they would be there twice
                outputs = logits.new_empty(self.n, *logits.shape[1:])
            outputs[rows] = logits
            if self.loss is not None:
                losses.append(self._per_sample(logits, self.targets[rows].to(logits.device)))
        assert outputs is not None
        return self._evaluation(outputs, torch.cat(losses) if losses else None)

    def batches(self, rows: slice | None = None, most: int | None = None) -> list[slice]:
        """Rows of each batch of all the data, or of some rows, at most ``most``, in order; the last may be shorter."""
        first, end = (0, self.n) if rows is None else (rows.start, rows.stop)
        size = self.batch_size if most is None else min(self.batch_size, most)
        return [slice(i, min(i + size, end)) for i in range(first, end, size)]

    def logits(self, rows: slice) -> Tensor:
        """The model's output for some rows, float32 or better, with its graph where gradients are enabled.

        Raises
        ------
        LandscapeError
            If that is no tensor with a row for each sample.
        """
        logits = logits_of(self._call(rows))
        if logits.shape[0] != rows.stop - rows.start:
            raise LandscapeError(f"expected logits ({rows.stop - rows.start}, ...), found {tuple(logits.shape)}")
        return logits

    def losses(self, logits: Tensor, rows: slice) -> Tensor:
        """Loss of each of the rows, (n,), differentiable in the logits; float64 for the default loss."""
        targets = self.targets[rows].to(logits.device)
        if self.loss is not None:
            return self._per_sample(logits, targets)
        log_probs = log_probs_of(logits)
        return cross_entropy(log_probs, targets.to(log_probs.device))

    def _call(self, rows: slice) -> Any:
        # A copy: a model that begins with an operation in place would write into the data.
        batch = {name: x[rows].to(self.device, non_blocking=True, copy=True) for name, x in self.inputs.items()}
        if self._kind == "dict":
            return self.model(**batch)
        return self.model(*batch.values())

    def _per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        assert self.loss is not None
        loss = self.loss(logits, targets)
        if not isinstance(loss, Tensor) or loss.shape != targets.shape[:1]:
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            hint = "; a mean hides its standard error, use reduction='none'" if found == () else ""
            if isinstance(loss, Tensor) and loss.ndim > 1 and loss.shape[:1] == targets.shape[:1]:
                hint = "; take the mean over its other axes, as loss.flatten(1).mean(1)"
            raise LandscapeError(
                f"expected a loss for each sample, shape {tuple(targets.shape[:1])}, found {found}{hint}"
            )
        return loss

    def _evaluation(self, logits: Tensor, losses: Tensor | None) -> Evaluation:
        targets = self.targets.to(logits.device)
        indices = targets.ndim == 1 and not targets.is_floating_point() and targets.dtype != torch.bool
        scores = logits.ndim == 2 and logits.shape[1] > 1 and (indices or losses is None)
        if losses is None and not scores:
            raise LandscapeError(f"the default loss expects logits (N, C), found {tuple(logits.shape)}; give loss=")
        hit = log_probs = None
        if scores:
            log_probs = log_probs_of(logits)
        if scores and indices:
            targets = targets.long()
            hit = logits.argmax(dim=1) == targets
        if losses is None:
            assert log_probs is not None
            losses = cross_entropy(log_probs, targets.to(log_probs.device))
        loss = losses.detach().cpu().double().numpy()
        return Evaluation(
            loss=loss,
            hit=None if hit is None else hit.cpu().numpy() & ~np.isnan(loss),  # argmax finds NaN: no hit
            logits=logits,
            log_probs=log_probs,
            fingerprint=self.fingerprint,
        )

    def _random_module(self) -> str:
        """Name of the first module, in order of completion, that gives two outputs for equal inputs."""
        runs: list[list[tuple[str, list[Tensor], list[Tensor]]]] = [[], []]
        for run in runs:

            def record(module: nn.Module, args: Any, output: Any, name: str, run: list = run) -> None:
                run.append((name, list(_tensors(args)), list(_tensors(output))))

            hooks = [
                module.register_forward_hook(lambda *a, name=name, record=record: record(*a, name=name))
                for name, module in self.model.named_modules()
            ]
            try:
                self._call(slice(0, min(8, self.n)))
            finally:
                for hook in hooks:
                    hook.remove()
        for (name, args, out), (_, args2, out2) in zip(*runs, strict=False):
            if _equal(args, args2) and not _equal(out, out2):
                return f"{name!r}" if name else "the model's own forward"
        return "not found in the first samples"


def _check_rows(tensors: Mapping[str, Any]) -> None:
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise LandscapeError(
                f"expected tensors, found {type(x).__name__} in {name!r}; data are held in memory, so join a loader's "
                "batches by torch.cat"
            )
    rows = {name: (len(x) if x.ndim else 0) for name, x in tensors.items()}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise LandscapeError(f"expected the same number of samples everywhere, at least one, found {rows}")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value.detach().clone()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.allclose(x, y, rtol=0, atol=0, equal_nan=True) for x, y in zip(a, b, strict=True)
    )
