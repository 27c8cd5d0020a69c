"""Train one run: ``python -m train TASK --method adaptformer --dim 8 --bits 1 --seed 0``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from collections.abc import Mapping

    from train.recipe import Recipe
    from train.spec import RunSpec

DESCRIPTION = """Train a run: tune a backbone on a task and write its folder below --out.

A killed run goes on where its last epoch ended; a finished one is found and left as it is. The result is a row of
metrics on stdout."""


def main(
    task: tyro.conf.Positional[str],
    method: str = "adaptformer",
    dim: int | None = None,
    scale: float | None = None,
    bits: int | None = None,
    quantizer: str = "gaussian_l1",
    head_bits: int = 32,
    backbone: str = "vit_tiny32",
    recipe: str = "paper",
    epochs: int | None = None,
    lr: float | None = None,
    protocol: str = "validation",
    inputs: str = "backbone",
    train_size: int = 1000,
    test_size: int | None = None,
    data_seed: int = 0,
    img_size: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    out: Path = Path("runs"),
    quiet: bool = False,
    json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Train one run.

    Args:
        task: digits, counting, orientation, folder:PATH or npz:PATH.
        method: full, linear, lora, adaptformer or subspace.
        dim: Hidden size of the adapter, its rank, or the dimension of the subspace; 8 if left out.
        scale: Factor on the adapter's output; 1 if left out.
        bits: Of an adapter's weight: 1 to 8, or 32 for plain ones; 32 if left out.
        quantizer: gaussian_l1 (the paper's, solved), released (its own codebooks) or another of docs/quantizers.md.
        head_bits: 32, or 1 for a low-bit head without bias.
        backbone: vit_tiny32, random:vit_tiny32, a name of timm's, or NAME@FILE for local weights.
        recipe: paper (100 epochs) or short (10).
        epochs: In place of the recipe's; its warm-up changes in proportion.
        lr: Base learning rate in place of the recipe's for this method.
        protocol: validation (val selects the epoch, test is read once) or paper (train and val, last epoch).
        inputs: Normalisation: backbone (its own), unit (none: 0 to 1, as the paper) or imagenet.
        train_size: Images to split into train (80 %) and val (20 %).
        test_size: Images to test on; all if left out.
        data_seed: Of the split.
        img_size: Side in pixels; the backbone's own if left out.
        seed: Of initial values, order and dropout.
        device: cpu, cuda, cuda:N or mps.
        out: Folder of run folders.
        quiet: No progress and no notes on stderr.
        json: The result as JSON.
    """
    from figures.command import emit
    from train.build import device_of
    from train.methods import get
    from train.recipe import preset
    from train.spec import RunSpec

    chosen = preset(recipe)
    if epochs is not None:
        chosen = chosen.with_epochs(epochs)
    if lr is not None:
        chosen = chosen.with_lr(method, lr)
    _refuse_adapter_options(get(method).has_adapter, method, dim=dim, scale=scale)
    spec = RunSpec(
        task=task,
        train_size=train_size,
        test_size=test_size,
        data_seed=data_seed,
        backbone=backbone,
        img_size=img_size,
        method=method,
        dim=8 if dim is None else dim,
        bits=32 if bits is None else bits,
        quantizer=quantizer,
        scale=1.0 if scale is None else scale,
        head_bits=head_bits,
        recipe=chosen,
        protocol=protocol,
        inputs=inputs,
        seed=seed,
    )
    device_of(device)  # before any image is decoded

    from train.build import load_task
    from train.loop import fit
    from train.run import RECORD, Run

    data = load_task(spec)
    if not quiet:
        print(_assumptions(spec, chosen, data.counts), file=sys.stderr)
    folder = out / spec.name
    before = (folder / RECORD).exists() and Run.open(folder).status == "done"
    command = shlex.join(["python", "-m", "train", *sys.argv[1:]])
    run = fit(spec, data, out, device=device, quiet=quiet, command=command)
    if not quiet:
        print(f"{'found finished' if before else 'trained'}: {run.path}", file=sys.stderr)
    frame = run.to_frame()
    emit(frame.drop(columns=[name for name in frame if str(name).endswith("_sha256")]), json)


def _refuse_adapter_options(has_adapter: bool, method: str, **given: float | None) -> None:
    """Say which options a method without an adapter has no use for.

    Raises
    ------
    TrainError
        If one was given.
    """
    from train.errors import TrainError

    useless = [f"--{name}" for name, value in given.items() if value is not None]
    if useless and not has_adapter:
        raise TrainError(f"{method} has no adapter: expected no {' and no '.join(useless)}")


def _assumptions(spec: RunSpec, recipe: Recipe, counts: Mapping[str, int]) -> str:
    """What is taken for granted, in one line."""
    train = counts["train"] + (counts["val"] if spec.protocol == "paper" else 0)
    return (
        f"{spec.label} on {spec.task}: backbone {spec.backbone}, inputs {spec.inputs}, {train} training images, "
        f"protocol {spec.protocol}, {recipe.epochs} epochs of batches of {recipe.batch_size}, "
        f"base learning rate {recipe.base_lr(spec.method):g}, seed {spec.seed}"
    )


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m train", description=DESCRIPTION)
