"""Quantisation-aware training and evaluation: beside 32 bits, the paper's formula written naively, and torchao."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks._rows import NAN, Row, alternated
from quant.codebooks import released
from quant.fake import QuantLinear, bake
from quant.quantizers._affine import EPS

BACKBONE, DIM, BATCH = "vit_tiny32", 32, 64
LARGE = 128
"""Hidden size at which matrices of width 192 have as many weights as the paper's, of h=32 and width 768."""


class Naive(nn.Module):
    """The released formula on a tensor blown up by the levels (PAPER 1.2): a sum of signs at every boundary."""

    def __init__(self, layer: QuantLinear) -> None:
        super().__init__()
        book = released(layer.bits)
        self.weight = layer.weight
        self.register_buffer("boundaries", torch.tensor(book.boundaries, dtype=torch.float32))
        self.register_buffer("steps", torch.tensor(book.values, dtype=torch.float32).diff() / 2)

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean(), self.weight.std()
        w = (self.weight - mean) / (std + EPS)
        q = (torch.sign(w[..., None] - self.boundaries) * self.steps).sum(-1)
        return nn.functional.linear(x, (q.detach() + w - w.detach()) * std + mean)


class Torchao(nn.Module):
    """Torchao's fake quantiser of integers in place of ours, per output row."""

    def __init__(self, layer: QuantLinear) -> None:
        from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

        super().__init__()
        self.weight = layer.weight
        dtype = getattr(torch, f"int{layer.bits}")
        self.fake = IntxFakeQuantizer(IntxFakeQuantizeConfig(dtype, granularity="per_channel", is_symmetric=True))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.fake(self.weight))


def step_rows(repeats: int, batch: int = BATCH, backbone: str = BACKBONE) -> list[Row]:
    """A training step, forward, backward and AdamW's: adapters in few bits over others."""
    images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    models = {f"{bits} bits": _network(bits, backbone) for bits in (1, 2, 4, 8, 32)}
    models["naive, 8 bits"] = _with(_network(8, backbone, "released"), Naive)
    models["large, 8 bits"] = _network(8, backbone, dim=LARGE)
    models["large, naive, 8 bits"] = _with(_network(8, backbone, "released", LARGE), Naive)
    missing = ""
    try:
        models |= {f"torchao, {bits} bits": _with(_network(bits, backbone), Torchao) for bits in (2, 4, 8)}
    except ImportError as error:
        missing = f"not installed: {error}"
    # One after the other in turn, a few steps each: what slows the machine for a while slows all of them.
    seconds = alternated({name: _stepper(model, images) for name, model in models.items()}, repeats)
    rows = [_step(bits, seconds, "32 bits", 1.05) for bits in (1, 2, 4, 8)]
    floor = f"32 bits take {seconds['32 bits'] / seconds['naive, 8 bits']:.2f} of it"
    rows.append(_step(8, seconds, "naive, 8 bits", 0.6, floor))
    large = Row(
        what=f"training step, AdaptFormer h{LARGE} at 8 bits",
        ours=seconds["large, 8 bits"],
        compared_with="naive, 8 bits",
        theirs=seconds["large, naive, 8 bits"],
        target=0.6,
        note="matrices of as many weights as h32 has on ViT-B/16",
    )
    return [*rows, large] + [_step(bits, seconds, f"torchao, {bits} bits", NAN, missing) for bits in (2, 4, 8)]


def _step(bits: int, seconds: dict[str, float], other: str, target: float, note: str = "") -> Row:
    return Row(
        what=f"training step, AdaptFormer h{DIM} at {bits} bit{'s' * (bits > 1)}",
        ours=seconds[f"{bits} bits"],
        compared_with=other,
        theirs=seconds.get(other, NAN),
        target=target,
        note=note,
    )


def evaluation_rows(repeats: int, batch: int = BATCH, backbone: str = BACKBONE) -> list[Row]:
    """A pass of a quantised model in eval mode over the baked one's, whose weights are plain."""
    images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = []
    for bits in (1, 8):
        model = _network(bits, backbone).eval()
        plain = bake(model).eval()
        with torch.no_grad():
            away = float((model(images) - plain(images)).abs().max())
            seconds = alternated({"ours": _passes(model, images), "baked": _passes(plain, images)}, repeats)
        rows.append(
            Row(
                what=f"evaluation, AdaptFormer h{DIM} at {bits} bit{'s' * (bits > 1)}",
                ours=seconds["ours"],
                compared_with="the baked model",
                theirs=seconds["baked"],
                target=1.02,
                note=f"logits differ by {away:g}" if not math.isnan(away) else "WRONG: logits are NaN",
            )
        )
    return rows


def _network(bits: int, backbone: str, quantizer: str = "gaussian_l1", dim: int = DIM) -> nn.Module:
    from train.build import build
    from train.spec import RunSpec

    spec = RunSpec(task="digits", backbone=backbone, method="adaptformer", dim=dim, bits=bits, quantizer=quantizer)
    return build(spec, 10)


def _with(model: nn.Module, kind: Callable[[QuantLinear], nn.Module]) -> nn.Module:
    """A copy of the model with another module in place of each low-bit layer."""
    model = copy.deepcopy(model)
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, QuantLinear)]:
        model.set_submodule(name, kind(layer))
    return model


def _stepper(model: nn.Module, images: Tensor, steps: int = 5) -> Callable[[], None]:
    targets = torch.arange(len(images)) % 10
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def run() -> None:
        for _ in range(steps):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), targets).backward()
            optimiser.step()

    run()  # what happens only once
    return run


def _passes(model: nn.Module, images: Tensor, count: int = 10) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            model(images)

    return run
