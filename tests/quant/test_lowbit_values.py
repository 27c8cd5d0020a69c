"""The values of every quantiser by the formulas of docs/lowbit.md alone, with the standard library's normal law."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch

from quant.lowbit import Lowbit, LowbitTensor, from_bytes, to_bytes
from quant.quantizers import names, widths

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "lowbit.md").read_text()
NORMAL = NormalDist()
Phi, Q = NORMAL.cdf, NORMAL.inv_cdf


def density(x: float) -> float:
    return NORMAL.pdf(x) if math.isfinite(x) else 0.0


def inner(v: list[float]) -> list[float]:
    return [(a + b) / 2 for a, b in pairwise(v)]


def gaussian(k: int, mean: bool) -> list[float]:
    """Medians or means of cells until they stay."""
    v = [(2 * c - k + 1) / k for c in range(k)]
    for _ in range(3000):
        cells = list(pairwise([-math.inf, *inner(v), math.inf]))
        if mean:
            v = [(density(low) - density(high)) / (Phi(high) - Phi(low)) for low, high in cells]
        else:
            v = [Q((Phi(low) + Phi(high)) / 2) for low, high in cells]
    return v


def released(k: int) -> list[float]:
    v = [0.0] * k
    for _ in range(500):
        p = [0.0, *map(Phi, inner(v)), 1.0]
        v = [Q((low + high) / 2) for low, high in pairwise(p)]
    return v


def laplace(k: int, l1: bool) -> list[float]:
    e, found = math.inf, []
    for _ in range(k // 2):
        if l1:
            e = math.log(2 - math.exp(-e))
        else:
            right, low, high = 0.0 if math.isinf(e) else (1 + e) * math.exp(-e), 0.0, 1.0
            for _ in range(200):
                d = (low + high) / 2
                low, high = (d, high) if (1 - d) * math.exp(d) > right else (low, d)
            e = low
        found.append(e)
    d = found[::-1]
    half = [(d[0] + 2 * sum(d[1 : i + 1])) / math.sqrt(2) for i in range(k // 2)]
    return [-x for x in half[::-1]] + half


def normal_float(k: int) -> list[float]:
    p = 1 - (1 / (2 * k) + 1 / (2 * k - 2)) / 2
    above = [Q(0.5 + (p - 0.5) * i / (k // 2)) / Q(p) for i in range(k // 2 + 1)]
    below = [-Q(0.5 + (p - 0.5) * i / (k // 2 - 1)) / Q(p) for i in range(1, k // 2)]
    return sorted(above + below)


LOCATED = (
    "gaussian_l1",
    "gaussian_l2",
    "quantile",
    "released",
    "laplace_l1",
    "laplace_l2",
    "uniform_minmax",
    "uniform_mse",
    "ecu",
)
V = {
    "gaussian_l1": lambda k: gaussian(k, mean=False),
    "gaussian_l2": lambda k: gaussian(k, mean=True),
    "quantile": lambda k: [Q((c + 0.5) / k) for c in range(k)],
    "released": released,
    "laplace_l1": lambda k: laplace(k, l1=True),
    "laplace_l2": lambda k: laplace(k, l1=False),
    "nf": normal_float,
    "uniform_minmax": lambda k: [c / (k - 1) for c in range(k)],
    "uniform_mse": lambda k: [c - (k - 1) / 2 for c in range(k)],
    "ecu": lambda k: [c - (k // 2 - 1) for c in range(k - 1)],
    "lsq": lambda k: [c - k // 2 for c in range(k)],
    "dorefa": lambda k: [2 * c / (k - 1) - 1 for c in range(k)],
    "bwn": lambda k: [-1, 1],
    "ternary": lambda k: [-1, 0, 1],
    "absmean": lambda k: [-1, 0, 1],
    "twn": lambda k: [-1, 0, 1],
}


def stored(name: str, bits: int) -> LowbitTensor:
    """A small tensor as a file gives it back."""
    w = torch.randn(6, 50, generator=torch.Generator().manual_seed(bits))
    data = to_bytes(Lowbit(header={}, tensors=[LowbitTensor.quantised("w", w, quantizer=name, bits=bits)]))
    return from_bytes(data).tensors[0]


def some_bits(name: str) -> list[int]:
    most = 4 if name.startswith("gaussian") else 8  # their rounds converge slowly
    return [bits for bits in (1, 2, 4, 8) if bits in widths(name) and bits <= most]


CASES = [(name, bits) for name in names() for bits in some_bits(name)]


def test_the_page_names_every_quantiser():
    section = PAGE.partition("## From codes to values")[2].partition("## What a reader refuses")[0]
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| `.*? \|", section, flags=re.MULTILINE)))) == set(names())


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_the_page_is_enough_for_the_values_of_every_quantiser(name, bits):
    k = 2**bits
    v = np.float32(V[name](k)) if name in V else None
    for scope in ("", "/row"):
        if name == "pq" and scope:
            continue
        t = stored(name + scope, bits)
        grids = 6 if scope else 1
        codes, statistics = t.codes.numpy().astype(int), t.statistics.numpy()
        if name == "pq":
            expected = statistics.reshape(-1, 4)[codes].reshape(-1)[:300]
        else:
            codes, table = codes.reshape(grids, -1), statistics.reshape(-1, grids)[:, :, None]
            if name in ("kmeans", "kmedians"):
                expected = np.stack([table[codes[g], g, 0] for g in range(grids)])
            else:
                located = name in LOCATED
                expected = v[codes] * table[int(located)] + (table[0] if located else 0)
        np.testing.assert_allclose(expected.reshape(6, 50), t.dense().numpy(), rtol=0, atol=1e-6)
