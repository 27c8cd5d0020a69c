"""Pretrain the small shipped ViT on a folder of 32x32 images: ``python -m train.pretrain DATA -o OUT``.

DATA holds ``train/<class>/*`` and ``test/<class>/*``. An epoch ends with an atomic write of the whole state, so a
killed run continues from there. The result is ``OUT/<name>.safetensors`` (float16: the master copy; it is what the
accuracy on the card was measured with) and ``OUT/<name>.json``, the card.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

NAME = "vit_tiny32"
ARCHITECTURE: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 192,
    "depth": 6,
    "num_heads": 3,
}
MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """The recipe, as it stands on the card."""

    epochs: int = 30
    batch_size: int = 256
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup_steps: int = 400
    crop_padding: int = 4
    """Reflected pixels around the image before a random crop."""
    mixup: float = 0.2
    """Parameter of the Beta distribution."""
    plain_epochs: int = 4
    """Last epochs without mixup."""
    label_smoothing: float = 0.1
    drop_path: float = 0.05
    clip: float = 1.0
    seed: int = 0


def augment(x, generator, padding: int):
    """Random crops of the reflected image and random flips, of a batch ``x`` (B, 3, H, W) in [-1, 1]."""
    import torch
    import torch.nn.functional as F

    b, _, h, w = x.shape
    padded = F.pad(x, (padding,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * padding + 1, (2, b), generator=generator)
    flip = torch.rand(b, generator=generator) < 0.5
    rows = top[:, None] + torch.arange(h)
    cols = torch.arange(w).expand(b, w)
    cols = left[:, None] + torch.where(flip[:, None], w - 1 - cols, cols)
    i = torch.arange(b)[:, None, None]
    return padded.permute(0, 2, 3, 1)[i, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2).contiguous()


def learning_rate(step: int, total: int, p: Pretraining) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < p.warmup_steps:
        return p.lr * (step + 1) / p.warmup_steps
    return 0.5 * p.lr * (1 + math.cos(math.pi * (step - p.warmup_steps) / max(1, total - p.warmup_steps)))


def pretrain(data: Path, out: Path, p: Pretraining, device: str = "cpu") -> Path:
    """Train, or continue, and write the backbone and its card; return the path of the backbone.

    Raises
    ------
    TrainError
        If there are fewer training images than one batch, train and test differ in their classes, the loss is no longer
        finite, or the state in ``out`` is of another recipe, data or device.
    """
    import timm
    import torch
    import torch.nn.functional as F

    from train.errors import TrainError
    from train.tasks.images import decode, list_class_folders

    out.mkdir(parents=True, exist_ok=True)
    state_file = out / "resume.pt"
    files, y_train, classes = list_class_folders(data / "train")
    test_files, y_test, test_classes = list_class_folders(data / "test")
    if classes != test_classes:
        raise TrainError(f"{data}: expected the same class folders below train and test")

    def tensor(found):
        return torch.from_numpy(decode(found, ARCHITECTURE["img_size"])).permute(0, 3, 1, 2).contiguous()

    images, labels = tensor(files), torch.from_numpy(y_train)
    test_images, test_labels = tensor(test_files), torch.from_numpy(y_test)

    torch.manual_seed(p.seed)
    arguments = {k: v for k, v in ARCHITECTURE.items() if k != "architecture"}
    model = timm.create_model(
        ARCHITECTURE["architecture"], num_classes=len(classes), drop_path_rate=p.drop_path, **arguments
    ).to(device)
    decay = [w for w in model.parameters() if w.ndim > 1]
    plain = [w for w in model.parameters() if w.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": p.weight_decay}, {"params": plain, "weight_decay": 0.0}], lr=p.lr
    )
    generator = torch.Generator().manual_seed(p.seed)
    n, steps = len(images), len(images) // p.batch_size
    if steps == 0:
        raise TrainError(f"expected at least one batch of {p.batch_size} images below {data / 'train'}, found {n}")
    total = steps * p.epochs
    # all but the number of epochs, which may be changed underway and stands on the card
    made_with = {**asdict(p), "epochs": 0, "images": [n, int(images.sum())], "classes": classes, "device": device}
    first, seconds = 0, 0.0
    schedules: list[list[int]] = []  # [first epoch, epochs of the schedule]: a run may be shortened or lengthened
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        if state["made_with"] != made_with:
            raise TrainError(
                f"{state_file} was made with another recipe, data or device: give the same, or another --out"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["rng"].cpu())
        first, seconds, schedules = state["epoch"], state["seconds"], state["schedules"]
    if not schedules or schedules[-1][1] != p.epochs:
        schedules.append([first, p.epochs])

    def inputs(u8):
        return u8.float().div_(127.5).sub_(1)

    for epoch in range(first, p.epochs):
        started = time.perf_counter()
        model.train()
        order = torch.randperm(n, generator=generator)
        running = 0.0
        for i in range(steps):
            rows = order[i * p.batch_size : (i + 1) * p.batch_size]
            x = augment(inputs(images[rows]), generator, p.crop_padding).to(device)
            y = F.one_hot(labels[rows], len(classes)).float().to(device)
            if epoch < p.epochs - p.plain_epochs:
                shares = torch._sample_dirichlet(torch.tensor([[p.mixup, p.mixup]]), generator=generator)
                share = float(shares[0, 0])
                x = share * x + (1 - share) * x.flip(0)
                y = share * y + (1 - share) * y.flip(0)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * steps + i, total, p)
            loss = F.cross_entropy(model(x), y, label_smoothing=p.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), p.clip)
            optimizer.step()
            running += loss.item()
        if not math.isfinite(running):
            raise TrainError("pretraining diverged: the loss is no longer finite; lower the learning rate")
        seconds += time.perf_counter() - started
        temporary = state_file.with_suffix(".tmp")
        torch.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(),
                "rng": torch.get_rng_state(),
                "epoch": epoch + 1,
                "seconds": seconds,
                "schedules": schedules,
                "made_with": made_with,
            },
            temporary,
        )
        Path(temporary).replace(state_file)
        accuracy = evaluate(model, test_images, test_labels, inputs, device) if (epoch + 1) % 5 == 0 else math.nan
        print(
            f"epoch {epoch + 1}/{p.epochs}  loss {running / steps:.3f}  test {accuracy:.4f}  {seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    rounded = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(rounded)
    accuracy = evaluate(model, test_images, test_labels, inputs, device)
    facts = {"seconds": round(seconds), "schedules": schedules, "images": n, "classes": len(classes)}
    return write(out, p, rounded, accuracy=accuracy, device=device, **facts)


def evaluate(model, images, labels, inputs, device) -> float:
    """Accuracy in [0, 1]."""
    import torch

    model.eval()
    with torch.inference_mode():
        hits = sum(
            int((model(inputs(x).to(device)).argmax(1).cpu() == y).sum())
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    return hits / len(labels)


def write(out: Path, p: Pretraining, state, *, accuracy, seconds, schedules, device, images, classes) -> Path:
    """Write ``NAME.safetensors`` (weights in float16, head left out) and the card ``NAME.json``."""
    import datetime
    import json
    import platform

    import timm
    import torch
    from safetensors.torch import save

    from figures.tables import write_bytes, write_text
    from train.backbones import content_hash

    body = {k: v.contiguous() for k, v in state.items() if not k.startswith("head.")}
    weights = out / f"{NAME}.safetensors"
    write_bytes(weights, save(body, metadata={"format": "pt"}))
    card = {
        "name": NAME,
        **ARCHITECTURE,
        "mean": MEAN,
        "std": STD,
        "parameters": sum(v.numel() for v in body.values()),
        "bytes": weights.stat().st_size,
        "hash": content_hash(body),
        "pretrained_on": {"dataset": "CIFAR-100, training images", "images": images, "classes": classes},
        "test_accuracy": accuracy,
        "recipe": asdict(p),
        "schedules_from_epoch_of_epochs": schedules,
        "seconds": seconds,
        "device": device,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    write_text(out / f"{NAME}.json", json.dumps(card, indent=1) + "\n")
    return weights


def main(
    data: Positional[Path],
    /,
    recipe: Pretraining = Pretraining(),
    *,
    out: Path = Path("pretrained"),
    device: str = "cpu",
) -> None:
    """Pretrain the shipped backbone, or go on with it.

    Parameters
    ----------
    data
        A folder with train/<class>/* and test/<class>/*.
    recipe
        How it is trained.
    out
        The weights, their card and the state between epochs go here.
    device
        cpu, cuda, mps.
    """
    print(pretrain(data, out, recipe, device))


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m train.pretrain")
