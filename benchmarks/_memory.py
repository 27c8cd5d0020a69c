"""Memory while a surface is drawn: what grows over many points, and how many copies of the moving tensors there are."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks._isolated import call
from benchmarks._rows import Row
from benchmarks._settings import Settings, Subjects

_MIB = 1 << 20
_WARM = 0.1
SAMPLES = 64
LARGE, LARGE_SAMPLES = "vit_large_patch16_224", 32


def memory_rows(subjects: Subjects, settings: Settings) -> list[Row]:
    """From a process of its own, so that nothing else is in it."""
    subject = subjects.whole()
    inputs, targets = subject.data(SAMPLES)
    job = {
        "model": subject.model,
        "names": subject.names,
        "inputs": inputs,
        "targets": targets,
        "points": settings.points,
    }
    found = call("watched", job, module="_memory", limit=3600)
    if not found.answer:
        raise RuntimeError(f"the watched process ended: {found.error}")
    answer = found.answer
    moving = answer["moving_bytes"] / _MIB
    return [
        *([] if subjects.small else [_large()]),
        Row(
            what=f"growth of resident memory over {settings.points:,} points beside the rows of the table itself, "
            f"{subject.label}, {SAMPLES} images",
            ours=(answer["growth_bytes"] - answer["rows_bytes"]) / _MIB,
            unit="MiB",
            compared_with="the moving tensors once",
            theirs=moving,
            kind="ours",
            target=1.0,
            note=f"after {answer['warm']} points, freed memory handed back before each reading; the rows take "
            f"{answer['rows_bytes'] / _MIB:.2f} MiB; the largest between: {answer['peak_bytes'] / _MIB:.1f} MiB above",
        ),
        Row(
            what=f"copies of the moving tensors beside the model, {subject.label}",
            ours=answer["copies_bytes"] / answer["moving_bytes"],
            unit="copies",
            kind="ours",
            target=3.0,
            note="all tensors alive between two points but the model's, the data and values by image (the centre's "
            f"logits), over {moving:.1f} MiB: the saved weights and two directions",
        ),
    ]


def _large() -> Row:
    found = call("large", {"backbone": LARGE}, module="_memory", limit=3600)
    if not found.answer:
        raise RuntimeError(f"the process of {LARGE} ended: {found.error}")
    answer = found.answer
    return Row(
        what=f"LoRA r8 on {LARGE}, {LARGE_SAMPLES} images of {answer['pixels']} pixels: largest resident memory",
        ours=answer["peak_bytes"] / 2**30,
        unit="GiB",
        kind="ours",
        target=24.0,
        note=f"model of {answer['model_bytes'] / 2**30:.2f} GiB; a gradient, a product with the Hessian in batches "
        f"of {answer['rows']}, and a line of 3 points, in one process",
    )


def large(job: dict[str, Any]) -> dict[str, Any]:
    """The child's part: a gradient, a Hessian product and a line of a large network's adapters, at random weights."""
    import resource

    from landscape.curvature import Hessian
    from landscape.directions import draw
    from landscape.gradient import gradient
    from landscape.objective import Objective
    from landscape.space import Space
    from landscape.surface import line
    from train.backbones import describe
    from train.build import build
    from train.methods import get
    from train.spec import RunSpec

    backbone = f"random:{job['backbone']}"
    model = build(RunSpec(task="digits", backbone=backbone, method="lora", dim=8), 10).eval()
    pixels = describe(backbone).img_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(LARGE_SAMPLES, 3, pixels, pixels, generator=generator)
    objective = Objective(model, images, torch.arange(LARGE_SAMPLES) % 10, batch_size=LARGE_SAMPLES)
    space = Space(model, get("lora").adapter_names(model))
    gradient(objective, space)
    with Hessian(objective, space) as hessian:
        hessian.product(torch.randn(hessian.size, generator=generator))
    line(objective, space, draw(space, 0), [-1.0, 0.0, 1.0])
    return {
        "pixels": pixels,
        "rows": hessian.graphs.batch_size,
        "model_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def watched(job: dict[str, Any]) -> dict[str, Any]:
    """The child's part: a plane of that many points, its memory read after each."""
    from landscape.directions import orthogonal_pair
    from landscape.objective import Objective
    from landscape.space import Space
    from landscape.surface import grid, plane

    model = job["model"].eval()
    objective = Objective(model, job["inputs"], job["targets"])
    known = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    known |= {job["inputs"].untyped_storage().data_ptr(), job["targets"].untyped_storage().data_ptr()}
    space = Space(model, job["names"], kind="full")
    dx, dy = orthogonal_pair(space, (0, 1))
    moving = sum(c.numel() * c.element_size() for c in space.centre.values())
    shapes = {c.shape for c in space.centre.values()}
    side = 2 * round(job["points"] ** 0.5 / 2) + 1
    warm, resident, copies = round(_WARM * side**2), [], []

    def on_point(done: int, of: int) -> None:
        resident.append(_resident())
        if done == warm:
            copies.append(_alive(known, len(job["inputs"]), shapes))

    found = plane(objective, space, dx, dy, *(2 * [grid(1.0, side)]), on_point=on_point)
    after = resident[warm:]
    rows = {id(part): sys.getsizeof(part) for row in found.rows[warm:] for part in (row, *row.values())}
    return {
        "moving_bytes": moving,
        "warm": warm,
        "growth_bytes": after[-1] - after[0],
        "rows_bytes": sum(rows.values()),
        "peak_bytes": max(after) - after[0],
        "copies_bytes": copies[0],
    }


def _resident() -> int:
    # What is freed goes back first: how much the allocator holds on to comes and goes by tens of MiB.
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * _page()


def _page() -> int:
    import resource

    return resource.getpagesize()


def _alive(known: set[int], images: int, shapes: set[torch.Size]) -> int:
    """Bytes of all tensors that Python holds, each storage once, but the known and those of a row an image."""
    seen: dict[int, int] = {}
    for held in gc.get_objects():
        if not issubclass(type(held), torch.Tensor) or not held.is_floating_point():  # a generator's state is bytes
            continue
        if held.shape[:1] != (images,) or held.shape in shapes:
            storage = held.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
    return sum(size for pointer, size in seen.items() if pointer not in known)
