"""Can this checkpoint's landscape be trusted? ``python -m analyses.doctor CKPT [CKPT ...]``.

Centre, restore, order, determinism, batch size, reduced precision, the share that moves, and the derivatives beside
differences of the loss, each passed or failed with its figure, in every space of the checkpoint; then a rescale that
leaves the function as it is, and what each measure made of it: one that changes does not speak of the function. The
last line is made for a figure's caption.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from analyses.bounds import positive
from analyses.command import Analysis
from analyses.options import Options, settings_of
from analyses.store import Tables, announce, cached

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    import torch

    from analyses.checkpoint import Checkpoint
    from analyses.command import OnStep
    from landscape.checks import Check

FEW = 32
"""Images on which a rescale is tried."""
RESCALE = ["measure", "unit", "before", "after", "ratio", "change_of_loss_nats", "rescale", "factor"]
ROUNDED = 1e-3
"""Nats, or share of a loss above one, that float32 rounding explains in the loss of a sample after a rescale."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """What is checked."""

    extent: float = 0.5
    """Alpha of the points away from the centre."""
    factor: float = 4.0
    """Of the function-preserving rescale."""

    def __post_init__(self) -> None:
        """Refuse values that no point, or no rescale, belongs to."""
        positive(extent=self.extent, factor=self.factor)


def compute(checkpoint: Checkpoint, options: Options, spec: Doctor, on_step: OnStep) -> tuple[Tables, dict[str, Any]]:
    """The checks of one checkpoint on its training images, a row a space and check; and the rescale, where known.

    A space that is finished is kept, for a command that goes on after a kill.
    """
    import pandas as pd

    from figures.tables import key_of

    about = {**options.settings(), **settings_of(spec), "checkpoint": checkpoint.identity}
    parts = checkpoint.folder / "tables" / ANALYSIS.part / "parts" / key_of(about)
    tables: dict[str, list[pd.DataFrame]] = {}
    for kind in checkpoint.spaces():
        found = cached(parts / kind, {**about, "space": kind}, partial(_of_space, checkpoint, kind, options, spec))
        for name, frame in found.items():
            tables.setdefault(name, []).append(frame)
        if on_step:
            on_step()
    joined = {name: pd.concat(frames, ignore_index=True) for name, frames in tables.items()}
    return joined, {"spent": [partial(shutil.rmtree, parts, ignore_errors=True)]}


def _of_space(checkpoint: Checkpoint, kind: str, options: Options, spec: Doctor) -> tuple[Tables, dict[str, Any]]:
    import pandas as pd

    from analyses.measure import labelled
    from landscape.checks import examine, rescaled, to_frame
    from landscape.derivatives import derivatives

    space = checkpoint.space(kind)
    objective = checkpoint.objectives(space.model, ("train",), options)["train"]
    found = examine(objective, space, seed=options.seed, extent=spec.extent)
    found += derivatives(objective, space, seed=options.seed)
    failed = [check.check for check in found if check.outcome == "fail"]
    said = f"{kind} space: {sum(c.outcome == 'pass' for c in found)} of {len(found)} checks pass"
    announce(options.quiet, said + (f", failed: {', '.join(failed)}" if failed else "") + "; the rescale follows")
    rows = pd.DataFrame(columns=RESCALE)
    if known := rescale(space.model, checkpoint.method, spec.factor):
        what, factors = known
        # What a measure is multiplied by does not depend on how many images there are.
        fewer = replace(options, samples=min(options.samples, FEW))
        few = checkpoint.objectives(space.model, ("train",), fewer)["train"]
        rows = pd.DataFrame(rescaled(measures(few, options.seed), space, factors, few))
        rows = rows.assign(rescale=what, factor=spec.factor)
        found.append(left_as_is(what, float(rows.change_of_loss_nats[0]), few.evaluate().mean_loss))
    else:
        found.append(not_applicable())
    report = to_frame(found)
    line = caption(checkpoint, kind, report, objective.n, space.k)
    tables = {"checks": report, "rescale": rows, "captions": pd.DataFrame({"caption": [line]})}
    return {name: labelled(frame, checkpoint, space=kind) for name, frame in tables.items()}, {}


def measures(objective: Any, seed: int) -> dict[str, Any]:
    """What the rescale is tried on: relative measures, and absolute ones, which it shows not to be the function's."""
    from landscape.curvature import Hessian, hutchinson, top_eigenvalues
    from landscape.sharpness import get

    def largest(space):
        with Hessian(objective, space) as hessian:
            return top_eigenvalues(hessian, 1, seed=seed).estimates()[0]

    def trace(space):
        with Hessian(objective, space) as hessian:
            return hutchinson(hessian, max_products=8, seed=seed)

    return {
        "average sharpness, per filter": lambda s: get("average")(objective, s, seed=seed),
        "worst case, elementwise adaptive": lambda s: get("adaptive")(objective, s, seed=seed),
        "worst case, one step (SAM)": lambda s: get("sam")(objective, s, seed=seed),
        "largest Hessian eigenvalue": largest,
        "Hessian trace": trace,
    }


def left_as_is(what: str, change: float, loss: float) -> Check:
    """Whether a rescale left the function as it is, but for rounding: without that its ratios say nothing."""
    from landscape.checks import Check

    meaning = f"largest change of a sample's loss under a rescale: {what}"
    passed = change <= ROUNDED * max(1.0, abs(loss))
    return Check(check="rescale", outcome="pass" if passed else "fail", figure=change, unit="nats", meaning=meaning)


def not_applicable() -> Check:
    """The row of an architecture that no rescale is known for."""
    from landscape.checks import Check

    meaning = "not applicable: no rescale is known that leaves the function of this architecture exactly as it is"
    return Check(check="rescale", outcome="not known", figure=math.nan, unit="nats", meaning=meaning)


def rescale(model: torch.nn.Module, method: str, factor: float) -> tuple[str, Mapping[str, torch.Tensor]] | None:
    """A rescale that is known to leave the function of this network as it is: in words, and the factors by tensor."""
    return _of_attention(model, factor) or _of_low_rank(model, factor) or _of_residual_block(model, factor)


def _of_low_rank(model: torch.nn.Module, factor: float) -> tuple[str, Mapping[str, torch.Tensor]] | None:
    # (B / c) relu(c A x) = B relu(A x), and without the ReLU: the gauge of two factors without biases.
    import torch

    from train.methods._parts import LowRank

    for name, module in model.named_modules():
        if isinstance(module, LowRank) and type(module.act) in (torch.nn.Identity, torch.nn.ReLU):
            first = module.down.weight.new_tensor(factor)
            factors = {f"{name}.down.weight": first, f"{name}.up.weight": 1 / first}
            return f"{name}.down times {factor:g}, {name}.up divided by it", factors
    return None


def _of_residual_block(model: torch.nn.Module, factor: float) -> tuple[str, Mapping[str, torch.Tensor]] | None:
    # relu(c x) = c relu(x): norm, ReLU and convolution in a row; what else the block may hold there does nothing.
    import torch
    from timm.models.resnet import BasicBlock, Bottleneck

    parameters = dict(model.named_parameters())
    for name, block in model.named_modules():
        if not isinstance(block, (BasicBlock, Bottleneck)) or type(block.act1) is not torch.nn.ReLU:
            continue
        between = [getattr(block, "drop_block", None), getattr(block, "aa", None)]
        if type(block) is Bottleneck:
            between = []  # both come after its second convolution
        scaled = [f"{name}.bn1.weight", f"{name}.bn1.bias", f"{name}.conv2.weight"]
        if (
            type(block.bn1) is torch.nn.BatchNorm2d
            and type(block.conv2) is torch.nn.Conv2d
            and all(type(module) in {type(None), torch.nn.Identity} for module in between)
            and all(tensor in parameters for tensor in scaled)
        ):
            first = parameters[scaled[0]].new_tensor(factor)
            factors = dict(zip(scaled, (first, first, 1 / first), strict=True))
            return f"gain and bias of {name}.bn1 times {factor:g}, {name}.conv2 behind its ReLU divided by it", factors
    return None


def _of_attention(model: torch.nn.Module, factor: float) -> tuple[str, Mapping[str, torch.Tensor]] | None:
    import torch

    for name, module in model.named_modules():
        qkv, heads = getattr(module, "qkv", None), getattr(module, "num_heads", 0)
        # Another class of projection may add to what its matrix gives.
        if type(qkv) is not torch.nn.Linear or not heads or getattr(module, "fused_qk_norm", False):
            continue
        if not isinstance(getattr(module, "q_norm", torch.nn.Identity()), torch.nn.Identity):
            continue  # a norm of queries takes any scale out again
        rows, width = qkv.weight.shape[0] // 3, qkv.weight.shape[0] // 3 // heads
        factors = torch.ones(qkv.weight.shape[0], device=qkv.weight.device)
        factors[:width], factors[rows : rows + width] = factor, 1 / factor
        found = {f"{name}.qkv.weight": factors[:, None]}
        if qkv.bias is not None:
            found[f"{name}.qkv.bias"] = factors
        return f"query of the first head of {name} times {factor:g}, its key divided by it", found
    return None


def caption(checkpoint: Checkpoint, kind: str, checks, samples: int, k: int) -> str:
    """The line for a figure's caption."""
    failed = checks.check[checks.outcome == "fail"].tolist()
    error = float(checks.figure[checks.check == "paired error"].iloc[0])
    verdict = f"failed: {', '.join(failed)}" if failed else "centre, order, restore and determinism exact"
    return (
        f"{checkpoint.label}: {kind} space, {k:,} parameters move (filter-normalised), {samples} images, paired "
        f"standard error of the rise {error:.2g} nats; {verdict}."
    )


def changes(rescales: pd.DataFrame) -> list[str]:
    """A line for each rescale: what each measure is afterwards, as a multiple of what it was."""
    lines = []
    for (run, space, what), rows in rescales.groupby(["run", "space", "rescale"], sort=False):
        ratios = "; ".join(f"{row.measure} x {row.ratio:.4g}" for row in rows.itertuples())
        lines.append(f"{run}, {space} space, {what}: {ratios}")
    return lines


ANALYSIS = Analysis(
    name="doctor",
    part="doctor-checks",
    compute=compute,
    shown=("checks",),
    steps=lambda checkpoint, spec: len(checkpoint.spaces()),
    assumed=lambda options, spec: f"{options.samples} training images, alpha {spec.extent:g}, rescale {spec.factor:g}",
    unit="spaces",
)


def main(checkpoints: Positional[tuple[Path, ...]], /, options: Options = Options(), doctor: Doctor = Doctor()) -> int:
    """Check whether the landscape of each checkpoint can be trusted; exit code 1 if a check fails.

    Parameters
    ----------
    checkpoints
        Run folders, or weights of whole networks with --backbone and --task.
    options
        What every analysis takes.
    doctor
        What is checked.
    """
    tables = ANALYSIS.run(checkpoints, options, doctor)
    announce(options.quiet, *changes(tables["rescale"]), *tables["captions"].caption)
    return int((tables["checks"].outcome == "fail").any())


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m analyses.doctor")
