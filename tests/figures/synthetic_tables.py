"""Tables of made-up models in the analyses' schemas: what the figures' tests draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from figures.tables import write_tables

MODELS = [
    ("full fine-tuning", "full", 0, 32, 2.4),
    ("AdaptFormer h8, 32 bits", "adaptformer", 8, 32, 1.0),
    ("AdaptFormer h32, 1 bit", "adaptformer", 32, 1, 1.15),
    ("LoRA r8, 32 bits", "lora", 8, 32, 0.8),
    ("LoRA r32, 1 bit", "lora", 32, 1, 0.9),
]
SPLITS = ("train", "test")


def labelled(model: tuple[str, str, int, int, float], seed: int) -> dict[str, object]:
    label, method, dim, bits, _ = model
    return {
        "task": "digits", "label": label, "method": method, "dim": dim, "bits": bits, "seed": seed,
        "run": f"{label}.s{seed}",
    }  # fmt: skip


def spaces(method: str) -> tuple[str, ...]:
    return {"full": ("full",), "adaptformer": ("factors", "full")}.get(method, ("factors", "merged", "full"))


def points(alphas: np.ndarray, seeds: int = 2, directions: int = 2, models=MODELS) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for model in models:
        for seed in range(seeds):
            for space in spaces(model[1]):
                for direction in range(directions):
                    sharp = model[4] * {"full": 1.0, "merged": 0.5, "factors": 0.25}[space] * rng.lognormal(0, 0.12)
                    tilt = rng.normal(0, 0.05)
                    for split in SPLITS:
                        for a in alphas:
                            rise = sharp * 4 * a**2 / (0.4 + a**2) * (1 + tilt * np.sign(a)) if a else 0.0
                            accuracy = 0.93 * np.exp(-0.3 * rise) + 0.03
                            rows.append(
                                {
                                    **labelled(model, seed), "space": space, "head": False, "split": split,
                                    "direction": direction, "alpha": a, "loss_nats": 0.1 + rise, "loss_se_nats": 0.01,
                                    "rise_nats": rise, "rise_se_nats": 0.02 * rise, "accuracy": accuracy,
                                    "accuracy_se": 0.01, "effective_radius": abs(a) * (0.9 if space == "full" else 0.7),
                                    "logit_radius": np.tanh(sharp * abs(a)), "kl_nats": rise / 2, "samples": 512,
                                    "nonfinite": 0, "moving": 1000, "moving_share": 0.1, "direction_norm": 3.0,
                                    "evaluated": True,
                                }
                            )  # fmt: skip
    return pd.DataFrame(rows)


def flatness(models=MODELS[:2]) -> dict[str, pd.DataFrame]:
    curves = points(np.linspace(-1, 1, 11), models=models)
    rows = []
    for space in dict.fromkeys(curves["space"]):
        for kind, radius in (("alpha", 1.0), ("effective", 0.62), ("logit", 0.3)):
            rows += [
                {
                    **labelled(m, s),
                    "space": space,
                    "radius_kind": kind,
                    "radius": radius,
                    "rise_nats": 1.0,
                    "rise_se_nats": 0.1,
                }
                for m in models
                for s in range(3)
            ]
    return {"curves": curves, "summary": pd.DataFrame(rows)}


def surface(models=MODELS[:2], n: int = 9) -> pd.DataFrame:
    rows = []
    axis = np.linspace(-1, 1, n)
    for i, model in enumerate(models):
        for y in axis:
            for x in axis:
                r2 = x**2 * (1 + 0.3 * i) + y**2 + 0.4 * x * y
                rise = model[4] * 3 * r2 / (0.6 + r2) + 0.15 * model[4] * np.sin(3 * x) ** 2 * y**2
                rows.append(
                    {
                        **labelled(model, 0), "space": "full" if model[1] == "full" else "factors", "head": False,
                        "split": "train", "direction": 0, "x": x, "y": y, "loss_nats": 0.1 + rise, "rise_nats": rise,
                        "evaluated": True,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def gaussianity(models=MODELS[2:4]) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(1)
    bins, matrices = [], []
    edges = np.linspace(-4.5, 4.5, 61)
    for model in models:
        w = rng.standard_t(9, 40000) / np.sqrt(9 / 7)
        density, _ = np.histogram(w, edges, density=True)
        middle = (edges[1:] + edges[:-1]) / 2
        bins.append(
            pd.DataFrame(
                {
                    "label": model[0], "tensor": "all", "left": edges[:-1], "right": edges[1:], "density": density,
                    "normal_density": np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi),
                }
            )
        )  # fmt: skip
        matrices += [
            {
                **labelled(model, 0), "tensor": f"blocks.{i}", "weights": 6144, "mean": 0.0, "std": 0.05,
                "w1_sigma": 0.03 * rng.lognormal(0, 0.4), "w1_sigma_null": 0.010 * rng.lognormal(0, 0.2),
                "w1_sigma_init": 0.012 * rng.lognormal(0, 0.3),
            }
            for i in range(24)
        ]  # fmt: skip
    return {
        "histogram": pd.concat(bins, ignore_index=True),
        "matrices": pd.DataFrame(matrices),
        "spectrum": pd.concat([spectrum(model) for model in models], ignore_index=True),
        "agreement": pd.concat([agreement(model) for model in models], ignore_index=True),
    }


def spectrum(model: tuple[str, str, int, int, float]) -> pd.DataFrame:
    """Of two runs with other edges each: a bulk a little below the law's, and a spike."""
    frames = []
    for seed in (0, 1):
        edges = np.linspace(0, 3 + seed, 81)
        middle, width = (edges[1:] + edges[:-1]) / 2, edges[1]
        law = np.sqrt(np.clip((middle**2 - 0.64) * (1.44 - middle**2), 0, None)) / (np.pi * 0.04 * middle)
        trained = np.exp(-(((middle - 0.8) / 0.15) ** 2)) + 0.2 * (np.abs(middle - 2.5) < width / 2)
        frames.append(
            pd.DataFrame(
                {
                    **labelled(model, seed), "shape": "8 x 192", "matrices": 12, "left": edges[:-1],
                    "right": edges[1:], "density": trained / trained.sum() / width, "mp_density": law,
                    "density_init": law if model[1] == "adaptformer" else np.nan,
                }
            )
        )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def agreement(model: tuple[str, str, int, int, float]) -> pd.DataFrame:
    edges = np.linspace(-1, 1, 41)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    null, found = np.exp(-((middle / 0.08) ** 2)), np.exp(-(((middle - 0.3) / 0.3) ** 2))
    return pd.concat(
        [
            pd.DataFrame(
                {
                    **labelled(model, 0), "side": side, "left": edges[:-1], "right": edges[1:],
                    "density": found / found.sum() / width, "null_density": null / null.sum() / width,
                }
            )
            for side in ("down", "both")
        ],
        ignore_index=True,
    )  # fmt: skip


def tradeoff() -> pd.DataFrame:
    rng = np.random.default_rng(2)
    rows = []
    for method, name in (("adaptformer", "AdaptFormer"), ("lora", "LoRA")):
        for product in (32, 8):
            for bits in (1, 2, 4, 8, 32):
                if product % bits:
                    continue
                dim = product // bits
                for seed in range(5):
                    accuracy = 0.86 + 0.02 * np.log2(product) / 5 - 0.012 * np.log2(bits) + rng.normal(0, 0.006)
                    rows.append(
                        {
                            "label": f"{name} {dim}, {bits} bit", "method": method, "dim": dim, "bits": bits,
                            "seed": seed, "run": f"{method}-{dim}-{bits}-{seed}", "adapter_bytes": product * 576 + 192,
                            "head_bytes": 7720, "test_accuracy": accuracy,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def precision() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    rows = []
    for method in ("adaptformer", "lora"):
        for seed in range(5):
            base = 0.9 + rng.normal(0, 0.006) - (0.01 if method == "lora" else 0)
            for bits in (1, 2, 4, 8, 32):
                accuracy = base - 0.009 / bits + rng.normal(0, 0.002)
                rows.append(
                    {
                        "method": method, "dim": 8, "bits": bits, "seed": seed, "run": f"{method}-{bits}-{seed}",
                        "test_accuracy": accuracy, "test_loss_nats": 0.3, "bytes": 1000 * bits,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def claims() -> pd.DataFrame:
    points, ratio = "accuracy", "ratio minus 1"
    low_bits, holds = "quantisation-aware training costs almost nothing", "holds"
    rows = [
        (1, "AdaptFormer h8 ends flatter than full fine-tuning", "superiority", 0, 0.62, 0.31, 0.93, 5, holds, "nats"),
        (1, "LoRA r8 ends flatter than full fine-tuning", "superiority", 0, 0.18, -0.12, 0.48, 5, "undecided", "nats"),
        (3, f"AdaptFormer h8, 1 bit: {low_bits}", "non-inferiority", -0.01, -0.004, -0.008, 0, 5, holds, points),
        (
            3,
            f"LoRA r8, 1 bit: {low_bits}",
            "non-inferiority",
            -0.01,
            -0.019,
            -0.024,
            -0.014,
            5,
            "does not hold",
            points,
        ),
        (3, f"LoRA r8, 2 bits: {low_bits}", "non-inferiority", -0.01, np.nan, np.nan, np.nan, 1, "undecided", points),
        (4, "1 bit wins over 32 bits at equal bytes", "superiority", 0, 0.022, 0.011, 0.033, 5, holds, points),
        (2, "each matrix is close to Gaussian", "non-inferiority", 0.05, 0.021, 0.015, 0.027, 5, holds, ratio),
    ]
    names = ["claim", "statement", "kind", "margin", "effect", "low", "high", "n", "verdict", "unit"]
    return pd.DataFrame(rows, columns=names).assign(confidence=0.975, endpoint="", p_value=0.01)


def history() -> pd.DataFrame:
    rng = np.random.default_rng(4)
    rows = []
    for model in MODELS:
        for seed in range(2):
            for epoch in range(12):
                loss = 2.3 * np.exp(-epoch / (4 + model[4])) + 0.05 + rng.normal(0, 0.01)
                rows.append(
                    {
                        **labelled(model, seed), "epoch": epoch, "lr": 1e-3, "train_loss_nats": loss,
                        "val_loss_nats": loss * 1.1 + 0.1, "val_accuracy": 0.95 - 0.3 * loss, "seconds": 1.0,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def ways() -> pd.DataFrame:
    rows = []
    for way, hill in (("straight line", 1.6), ("Bezier curve of degree 2", 0.1)):
        for split in SPLITS:
            for a in np.linspace(0, 1, 21):
                loss = 0.1 + 0.3 * a + 4 * hill * a * (1 - a) + (0.2 if split == "test" else 0)
                rows.append(
                    {
                        "task": "digits", "first": "a", "second": "b", "way": way, "space": "merged", "split": split,
                        "direction": -1, "alpha": a, "loss_nats": loss, "loss_se_nats": 0.05 * loss,
                        "accuracy": np.exp(-loss), "accuracy_se": 0.02,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def trajectory() -> dict[str, pd.DataFrame]:
    t = np.linspace(1, 0, 7)
    x, y = 0.9 * t, 0.6 * np.sin(3 * t)
    outside = 0.6 * (1 - t) * (t > 0)
    norm = np.sqrt((x**2 + y**2) / (1 - outside))
    places = pd.DataFrame(
        {"checkpoint": [f"epoch {i}" for i in range(7)], "x": x, "y": y, "norm": norm, "outside_share": outside}
    )
    return {"checkpoints": places.assign(task="digits"), "points": surface(MODELS[:1], n=7)}


def collapse() -> pd.DataFrame:
    rows = []
    for model, seeds in ((MODELS[2], 1), (MODELS[3], 3)):
        for seed in range(seeds):
            ways = [
                ("as trained", 32, 0.0),
                ("merged", 32, 0.03),
                ("pruned", model[3], 0.2),
                ("retrained", model[3], 0.02),
            ]
            for how, bits, loss in ways:
                for size in (model[2],) if how == "as trained" else (1, 2, 4):
                    change = -loss / size - 0.002 * seed
                    rows.append(
                        {
                            **labelled(model, seed), "how": how, "size": size,
                            "stored_bits": bits if loss else model[3],
                            "adapter_bytes": 300 * size * bits // 8, "file_bytes": 300 * size * bits // 8 + 900,
                            "accuracy": 0.9 + change, "accuracy_se": 0.01, "accuracy_change": change,
                            "accuracy_change_se": 0.004,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def density() -> pd.DataFrame:
    rows = []
    for model in MODELS[:2]:
        for space in ("factors", "full"):
            x = np.linspace(-2, 12, 60)
            height = np.exp(-(x**2)) + 1e-3 * np.exp(-((x - 4 - model[4]) ** 2)) + 1e-12
            rows.append(
                pd.DataFrame({**labelled(model, 0), "space": space, "eigenvalue_nats": x, "density": height,
                              "low": 0.8 * height, "high": 1.2 * height})
            )  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def dimension() -> dict[str, pd.DataFrame]:
    """Subspaces that reach nine tenths of full fine-tuning, adapters that do with fewer bytes."""
    models = [("full", 0, 32, 1e7, 0.96), ("linear", 0, 32, 0.0, 0.8), ("lora", 8, 1, 4800.0, 0.89)]
    models += [("adaptformer", 8, bits, 2304.0 * bits + 96, 0.85 + 0.001 * bits) for bits in (1, 32)]
    models += [("subspace", d, 32, 4.0 * d, 0.8 + 0.02 * np.log10(d)) for d in (10, 30, 100, 300, 1000, 3000)]
    names = ["method", "dim", "bits", "bytes", "accuracy"]
    points = pd.DataFrame(models, columns=names).assign(task="digits", accuracy_se_seeds=0.01)
    rows = [
        {"task": "digits", "yardstick": y, "model": "subspace", "seed": "all", "share": 0.9, "target_accuracy": a}
        for y, a in (("of_full", 0.864), ("above_chance", 0.874), ("above_head", 0.944))
    ]
    return {"points": points, "answer": pd.DataFrame(rows)}


def bits() -> pd.DataFrame:
    """Of three quantisers after training, one with codes for several weights, and one in training."""
    rng = np.random.default_rng(5)
    rows = []
    for model in MODELS[1:2] + MODELS[3:4]:
        about = {"quantizer": "none", "bits": 32, "when": "as trained", "accuracy": 0.91, "accuracy_change_se": 0.0}
        rows.append({**labelled(model, 0), **about, "rate_bits": 32.0, "entropy_bits": 32.0, "distortion": 0.0})
        for name, share, when in (
            ("nf", 1, "after"),
            ("pq", 0.25, "after"),
            ("bwn", 1, "after"),
            ("nf", 1, "in training"),
        ):
            for b in (1,) if name == "bwn" else (1, 2, 4):
                lost = {"after": 0.3, "in training": 0.05}[when] * 2.0 ** (-1.5 * b * share) * rng.lognormal(0, 0.1)
                rows.append(
                    {
                        **labelled(model, 0), "quantizer": name, "bits": b, "when": when, "accuracy": 0.91 - lost,
                        "accuracy_change_se": lost / 8, "rate_bits": float(b * share), "entropy_bits": 0.95 * b * share,
                        "distortion": 1.5 * 4.0 ** (-b * share),
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def survive() -> dict[str, pd.DataFrame]:
    """Matrices foretold well at 4 bits, badly at 1, one of them with a falling loss."""
    rng = np.random.default_rng(6)
    matrices, ranks = [], []
    for model in MODELS[1:2] + MODELS[3:4]:
        for b, spread in ((1, 1.2), (4, 0.1)):
            for i in range(12):
                found = 4.0**-b * rng.lognormal(0, 1)
                foretold = found * rng.lognormal(0, spread)
                matrices.append(
                    {
                        **labelled(model, 0), "quantizer": "nf", "bits": b, "tensor": f"blocks.{i}",
                        "predicted_nats": -foretold if i == 3 else foretold, "measured_nats": found,
                        "measured_se_nats": 0.1 * found,
                        "verdict": "fails" if abs(foretold - found) > 0.5 * found or i == 3 else "agrees",
                    }
                )  # fmt: skip
            for predictor, rho in (("hessian", 0.9), ("gauss_newton", 0.8), ("error_squared", 0.3)):
                about = {"quantizer": "nf", "bits": b, "predictor": predictor, "spearman": rho}
                ranks.append({**labelled(model, 0), **about})
    return {"matrices": pd.DataFrame(matrices), "correlations": pd.DataFrame(ranks)}


def everything() -> dict[str, dict[str, pd.DataFrame]]:
    """By analysis, all tables that figures read."""
    return {
        "curves": {"points": points(np.linspace(-1, 1, 11))},
        "noise": {"points": points(np.array([0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]), models=MODELS[:2])},
        "flatness": {**flatness(), "density": density()},
        "surface": {"points": surface()},
        "gaussianity": gaussianity(),
        "tradeoff": {"points": tradeoff()},
        "precision": {"points": precision()},
        "claims": {"claims": claims()},
        "history": {"history": history()},
        "connectivity": {"ways": ways()},
        "collapse": {"sizes": collapse()},
        "trajectory": trajectory(),
        "dimension": dimension(),
        "bits": {"points": bits()},
        "survive": survive(),
    }


def write_everything(folder: Path) -> None:
    """``folder/tables/<analysis>`` for all of them."""
    for analysis, tables in everything().items():
        write_tables(folder / "tables" / analysis, tables, {"settings": {"synthetic": True}})
