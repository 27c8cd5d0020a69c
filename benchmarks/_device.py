"""How much of the device is used: floating-point operations a second, beside those of its fastest matrix product."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._bare import best_batch_size, passes
from benchmarks._rows import Row, alternated, clock
from benchmarks._settings import Settings, Subjects
from landscape.curvature import Hessian
from landscape.precision import Precision, precision, probe
from landscape.provenance import name_of
from landscape.surface import grid, plane

SIDES = (512, 1024, 2048, 4096, 8192)
SECONDS = 0.1
"""A side is the last one tried when its product takes longer."""


def device_rows(subjects: Subjects, settings: Settings) -> list[Row]:
    """Bare passes, the points of a surface and Hessian products, by the share of the matmul peak that they reach."""
    device = torch.device(settings.device)
    cpu = subjects.whole()
    subject = replace(cpu, model=copy.deepcopy(cpu.model).to(device))
    inputs = subject.data(settings.samples)[0].to(device)
    space, pair = subject.space(), subject.pair()
    axis = grid(1.0, settings.block)
    batch_size = best_batch_size(subject.model, inputs, now=clock_of(device))
    objective = subject.objective(settings.samples, batch_size)
    chosen = probe(objective, space, pair, extent=1.0).precision

    def reduced() -> None:
        with precision(subject.model, chosen):
            objective.evaluate()

    a_pass = operations(lambda: subject.model(inputs))
    work: dict[str, Callable[[], object]] = {
        "bare pass": partial(passes, subject.model, inputs, batch_size),
        f"grid of {settings.block} x {settings.block} points": partial(plane, objective, space, *pair, axis, axis),
    }
    done = dict(zip(work, (a_pass, a_pass * len(axis) ** 2), strict=True))
    if chosen != "float32":
        work[f"loss in {chosen}"], done[f"loss in {chosen}"] = reduced, a_pass
    with Hessian(subject.objective(settings.batch), subject.everything()) as hessian:
        vector = torch.randn(hessian.size, generator=torch.Generator().manual_seed(0)).to(device)
        multiply = partial(hessian.product, vector)
        multiply()  # what happens once happens here
        work["Hessian product"], done["Hessian product"] = multiply, operations(multiply)
        seconds = alternated(work, settings.repeats, now=clock_of(device))
    peaks = {kind: peak(device, kind, subject.model) for kind in {"float32", chosen}}
    rows = []
    for what, taken in seconds.items():
        kind: Precision = chosen if what == f"loss in {chosen}" else "float32"
        rate, side = peaks[kind]
        rows.append(
            Row(
                what=f"{what}, {subject.label}, on {name_of(device)}",
                ours=done[what] / taken / 1e9,
                unit="GFLOP/s",
                compared_with=f"{kind} product of two {side} x {side} matrices",
                theirs=rate / 1e9,
                note=f"{done[what] / 1e9:.3g} GFLOP in {taken:.3g} s",
            )
        )
    return rows


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in a call, attention written out."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def peak(device: torch.device, kind: Precision, model: torch.nn.Module) -> tuple[float, int]:
    """Operations a second of the fastest square matrix product, and its side."""
    now = clock_of(device)
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    rates = {}
    with torch.inference_mode(), precision(model, kind):
        for side in SIDES:
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            multiply = partial(torch.mm, a, b, out=torch.empty_like(a))
            multiply()
            taken = min(alternated({"once": multiply}, 1, now=now)["once"] for _ in range(7))
            rates[side] = 2 * side**3 / taken
            if taken > SECONDS:
                break
    fastest = max(rates, key=lambda side: rates[side])
    return rates[fastest], fastest


def clock_of(device: torch.device) -> Callable[[], float]:
    """The clock by which to time it; beside a GPU that of the wall, read when all that was begun there is done."""
    if device.type != "cuda":
        return clock

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now
