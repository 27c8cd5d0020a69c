"""A file of few bits made after training: ``python -m analyses.pack CKPT --bits 2 --quantizer nf -o X.lowbit``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from analyses.errors import AnalysisError
from analyses.options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from analyses.checkpoint import Checkpoint
    from quant.lowbit import Lowbit, LowbitTensor


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How the matrices are stored."""

    bits: int = 2
    """Bits a weight of the adapter's matrices; of full fine-tuning, of all matrices that training moved. 32 leaves them
    as they are, also those that are stored in few bits already."""
    quantizer: str = "gaussian_l1"
    """A quantiser, NAME[/row|/group<N>][/f16]."""
    head_bits: int = 32
    """Bits a weight of the head's matrix, by the same quantiser; 32 leaves it as it is."""


def pack(checkpoint: Checkpoint, options: Options, spec: Packing) -> Lowbit:
    """The file of a 32-bit checkpoint with its matrices stored in few bits; at 32 bits, of any with its head in few.

    A quantiser that there is not is a ``QuantError``, a checkpoint without such matrices an ``AnalysisError``.
    """
    from analyses.rounding import rounded, rounded_space
    from quant.content import Lowbit, LowbitTensor
    from train.methods import head_names

    stored = _stored(checkpoint) if spec.bits == 32 and checkpoint.bits < 32 else None
    low = {} if spec.bits == 32 else {t.name: t for t in rounded(rounded_space(checkpoint), spec.quantizer, spec.bits)}
    if spec.head_bits < 32:
        own = checkpoint.model.state_dict()
        low |= {
            name: LowbitTensor.quantised(name, own[name], quantizer=spec.quantizer, bits=spec.head_bits)
            for name in head_names(checkpoint.model)
            if own[name].dim() > 1
        }
    if stored is not None:
        header = {**stored.header, "head_bits": spec.head_bits}
        return Lowbit(header=header, tensors=[low.get(t.name, t) for t in stored.tensors])
    facts = {"bits": spec.bits, "quantizer": spec.quantizer, "head_bits": spec.head_bits}
    return file_of(checkpoint, low, options, **facts)


def _stored(checkpoint: Checkpoint) -> Lowbit:
    """The file of a low-bit checkpoint.

    Raises
    ------
    AnalysisError
        If it lies in one of another kind.
    """
    from quant.lowbit import read_lowbit

    path = checkpoint.path / "adapter.lowbit" if checkpoint.run else checkpoint.path
    if path.suffix != ".lowbit":
        raise AnalysisError(f"expected a run or a .lowbit file to leave in its bits, found {path}: import it first")
    return read_lowbit(path)


def file_of(checkpoint: Checkpoint, low: Mapping[str, LowbitTensor], options: Options, **facts: Any) -> Lowbit:
    """What is shipped of a checkpoint: matrices of ``low`` in low bits, all else that its method keeps as it is."""
    from quant.content import Lowbit, LowbitTensor
    from train.methods import get, head_names

    own = checkpoint.model.state_dict()
    names = get(checkpoint.method).kept(checkpoint.model)
    tensors = [low.get(name) or LowbitTensor.plain(name, own[name]) for name in names]
    if checkpoint.run is not None:
        from train.files import header

        return Lowbit(header={**header(checkpoint.run.record, head_names(checkpoint.model)), **facts}, tensors=tensors)
    about = {
        "method": checkpoint.method,
        "backbone": str(options.backbone).partition("@")[0],
        "task": checkpoint.task.name,
        "img_size": options.img_size,
        "classes": list(checkpoint.task.classes),
        "head": sorted({name.rpartition(".")[0] for name in head_names(checkpoint.model)}),
    }
    return Lowbit(header={**about, **facts}, tensors=tensors)


def measured(checkpoint: Checkpoint, path: Path, options: Options) -> dict[str, Any]:
    """A row: bytes of the file at ``path``, loss and accuracy on test images with its values, less the checkpoint's.

    ``tensor_bytes`` and ``head_bytes`` are those of dense codes, statistics and values; the file has a header more, and
    codes that are coded may take less. Errors of the differences are paired over images.
    """
    from analyses.rounding import accuracy_change, evaluate
    from landscape.space import Space
    from quant.header import is_head
    from quant.lowbit import read_lowbit

    lowbit = read_lowbit(path)
    parameters = dict(checkpoint.model.named_parameters())
    values = {
        t.name: padded(t.dense(), parameters[t.name].shape).to(parameters[t.name])
        for t in lowbit.tensors
        if t.name in parameters
    }
    space = Space(checkpoint.model, list(values), kind="factors")
    objective = checkpoint.objectives(checkpoint.model, ("test",), options)["test"]
    centre = objective.evaluate()
    here = evaluate(objective, space, values)
    rise, rise_se = here.rise_over(centre)
    change, change_se = accuracy_change(here, centre)
    sizes = lowbit.sizes()
    head = sum(size for name, size in sizes.items() if is_head(name, lowbit.header))
    return {
        **checkpoint.labels(),
        "file": path.name,
        "file_bytes": path.stat().st_size,
        "tensor_bytes": sum(sizes.values()) - head,
        "head_bytes": head,
        "samples": objective.n,
        "loss_nats": here.mean_loss,
        "rise_nats": rise,
        "rise_se_nats": rise_se,
        "accuracy": here.accuracy,
        "accuracy_change": change,
        "accuracy_change_se": change_se,
    }


def writable(output: Path) -> None:
    """Refuse, before the work begins, a path that no .lowbit file can be written to.

    Raises
    ------
    AnalysisError
        If it has another ending, is a folder, or lies where no file can be made.
    """
    if output.suffix != ".lowbit":
        raise AnalysisError(f"expected a file that ends in .lowbit, found {output.name}")
    if output.is_dir():
        raise AnalysisError(f"expected a file to write, found the folder {output}")
    above = next(path for path in output.absolute().parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise AnalysisError(f"{output}: expected a folder that can be written to, found {above}")


def padded(values: Tensor, shape: Any) -> Tensor:
    """The values with zeros for the hidden units that are gone, in the shape that the network has.

    Values that are not shorter along one axis alone are given back as they are.
    """
    import torch

    if values.dim() != len(shape) or sum(n != m for n, m in zip(values.shape, shape, strict=True)) != 1:
        return values
    if any(n > m for n, m in zip(values.shape, shape, strict=True)):
        return values
    whole = torch.zeros(shape, dtype=values.dtype)
    whole[tuple(slice(0, n) for n in values.shape)] = values
    return whole


def main(
    checkpoint: Positional[Path],
    /,
    output: Annotated[Path, arg(aliases=["-o"])],
    options: Options = Options(),
    packing: Packing = Packing(),
) -> None:
    """Write a packed file of a checkpoint, and say what it costs in bytes and in accuracy.

    Parameters
    ----------
    checkpoint
        A run folder, an adapter file, or weights of a whole network with --backbone and --task.
    output
        The .lowbit file to write.
    options
        What every analysis takes.
    packing
        How the matrices are stored.
    """
    import pandas as pd

    from analyses.checkpoint import open_checkpoint
    from analyses.store import announce
    from figures.command import emit
    from quant.lowbit import write_lowbit

    writable(output)
    opened = open_checkpoint(checkpoint, options)
    announce(options.quiet, f"{opened.label}: {packing.quantizer} at {packing.bits} bits, head at {packing.head_bits}")
    write_lowbit(output, pack(opened, options, packing))
    stored = {f"stored_{name}": value for name, value in asdict(packing).items()}
    emit(pd.DataFrame([measured(opened, output, options) | stored]), options.json)


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.pack")
