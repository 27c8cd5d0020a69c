"""Options that every analysis shares, under the same names everywhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from analyses.bounds import at_least, positive

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from analyses.checkpoint import Checkpoint

Gauge = Literal["as-trained", "balanced"]
Weights = Literal["values", "requantised"]
BatchNorm = Literal["freeze", "recalibrate", "perturb"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every analysis takes.

    A field that could change a number is part of the identity of the tables; the others are not.
    """

    samples: int = 256
    """Images of each split that the loss is taken over, the same for every model that is compared."""
    rise_se: float | None = None
    """In place of --samples: so many images, the same for all models, that the rise has this standard error (nats)."""
    batch_size: int | None = None
    """Images in one forward pass, 64 on a processor and 256 elsewhere if left out; no result depends on it beyond
    rounding."""
    seed: int = 0
    """Seed of the first direction; the others follow."""
    device: str = "cpu"
    """Where the forward passes run: cpu, cuda, cuda:1, mps."""
    workers: str = "1"
    """Where the points of a surface are measured: 1 (here), a number of processes, ray, or ray://HOST:PORT."""
    threads: int | None = None
    """Of this process and of each worker; the cores, shared among the workers, if left out."""
    backbone: str | None = None
    """For weights that are no run folder: the timm name of the architecture. For a run: where its weights lie now."""
    task: str | None = None
    """For weights that are no run folder: the task, for example folder:PATH. For a run: where its data lie now."""
    train_size: int = 1000
    """For weights that are no run folder: images to split into train (80 %) and val."""
    img_size: int | None = None
    """For weights that are no run folder: height and width of the input in pixels."""
    out: Path | None = None
    """Where tables and figures go; below the run itself when it is one run, ``./analysis`` otherwise."""
    json: bool = False
    """Print the result as JSON."""
    quiet: bool = False
    """No progress, no report of assumptions."""

    def __post_init__(self) -> None:
        """Refuse values that nothing can be measured with."""
        at_least(1, samples=self.samples, batch_size=self.batch_size, threads=self.threads)
        positive(rise_se=self.rise_se)
        if not self.workers.isdecimal() or int(self.workers) < 1:  # a plain number needs no torch to be read
            from landscape.workers import check

            check(self.workers)

    def threads_each(self) -> int:
        """Threads of this process and of each worker: the values depend on it in their last bits (NUMERICS 2)."""
        import torch

        if self.threads is not None:
            return self.threads
        many = int(self.workers) if self.workers.isdecimal() else 1
        return max(1, torch.get_num_threads() // max(1, many))

    def images_each(self) -> int:
        """Images in one forward pass."""
        import torch

        from landscape.objective import rows_of

        return self.batch_size or rows_of(torch.device(self.device))

    def settings(self) -> dict[str, object]:
        """What of the options belongs to the identity of a result, and the threads that it is computed with."""
        import torch

        return {
            "samples": self.samples,
            "batch_size": self.images_each(),
            "seed": self.seed,
            "device": self.device,
            "threads": torch.get_num_threads(),
        }


def later(default: Any) -> Any:
    """A field of settings that were published without it: at its default it leaves the identity of tables as it was."""
    return field(default=default, metadata={"later": True})


def beside(default: Any) -> Any:
    """A field that asks for tables beside those of an analysis itself, which do not depend on it."""
    return field(default=default, metadata={"later": True, "beside": True})


@dataclass(frozen=True, kw_only=True)
class Move:
    """What moves when weights are disturbed, and how it is evaluated; the settings of an analysis build on it."""

    head: bool = False
    """Move the classification head too."""
    gauge: Gauge = later("as-trained")
    """Which of the pairs of low-rank factors with one product moves: the one training ended at, or the balanced one."""
    weights: Weights = later("values")
    """What of low-bit weights moves: the stored values, or latent weights that are quantised again (a staircase)."""
    vectors: Literal["zero", "vector", "element"] = later("zero")
    """Biases, norm gains and running statistics: held still, each as one filter, or each entry by its own size."""
    batch_norm: BatchNorm = later("freeze")
    """Running statistics at moved weights: those of training, taken anew on the first split's images, or moved too."""
    precision: Literal["auto", "float32"] = later("auto")
    """auto: the device's reduced precision where a probe finds its error below a quarter of the paired one's."""
    dimensions: ClassVar[int] = 1
    """Of what is measured in each space: lines, or planes."""

    def kinds(self, checkpoint: Checkpoint) -> list[str]:
        """The spaces that are measured."""
        return list(checkpoint.spaces(self.weights))

    def of_space(self) -> dict[str, Any]:
        """Arguments of :meth:`analyses.checkpoint.Checkpoint.space`."""
        return {
            "head": self.head,
            "gauge": self.gauge,
            "weights": self.weights,
            "vectors": self.vectors,
            "batch_norm": self.batch_norm,
        }


def settings_of(spec: DataclassInstance, *without: str) -> dict[str, Any]:
    """What of an analysis' own settings belongs to the identity of its tables.

    All but ``later`` ones at their default, and but a ``place`` where something lies: what lies there is named instead.
    And but those of the kinds that are named.
    """
    unused = {f.name for f in fields(spec) if f.metadata.get("later") and getattr(spec, f.name) == f.default}
    unused |= {f.name for f in fields(spec) if any(f.metadata.get(kind) for kind in ("place", *without))}
    return {name: value for name, value in asdict(spec).items() if name not in unused}
