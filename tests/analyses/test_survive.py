"""Will it survive b bits: the quadratic model is exact where the loss is quadratic, and says where it fails."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from analyses.errors import AnalysisError
from analyses.options import Options
from analyses.quadratic import curvatures, verdict
from analyses.survive import ANALYSIS, Survive, correlations, survive
from landscape.curvature import Hessian
from landscape.objective import Objective
from landscape.space import Space
from quant.content import LowbitTensor
from train.loop import fit
from train.recipe import Recipe
from train.spec import RunSpec
from train.tasks import load

N, IN, OUT = 24, 6, 4
PAIRS = [("gaussian_l1", 1), ("uniform_minmax", 3)]


class Sum(nn.Module):
    """W x + V x^2: linear in its weights, so that a squared loss is quadratic in them."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = (nn.Linear(IN, OUT, bias=False, dtype=torch.float64) for _ in range(2))

    def forward(self, x):
        return self.w(x) + self.v(x * x)


def squared(logits, targets):
    return 0.5 * (logits - targets).square().sum(dim=1)


@pytest.fixture(scope="module")
def linear():
    torch.manual_seed(0)
    model = Sum().eval()
    x, y = torch.randn(N, IN, dtype=torch.float64), torch.randn(N, OUT, dtype=torch.float64)
    space = Space(model, ["w.weight", "v.weight"])
    rows, facts = survive(Objective(model, x, y, loss=squared, batch_size=7), space, PAIRS)
    return SimpleNamespace(model=model, x=x.numpy(), y=y.numpy(), rows=rows, facts=facts, space=space)


def errors(linear, quantizer: str, bits: int) -> list[np.ndarray]:
    """What a file would store, less the weights."""
    found = []
    for layer in (linear.model.w, linear.model.v):
        w = layer.weight.detach()
        stored = LowbitTensor.quantised("w", w, quantizer=quantizer, bits=bits).dense()
        found.append((stored.double() - w).numpy())
    return found


@pytest.mark.parametrize("pair", PAIRS)
def test_predictions_of_a_quadratic_loss_are_the_closed_form_and_the_measurement(linear, pair):
    """The residual r moves by E x: the mean loss by mean r'Ex + |Ex|^2 / 2, whatever the size of E."""
    w, v = (layer.weight.detach().numpy() for layer in (linear.model.w, linear.model.v))
    inputs = linear.x, linear.x**2
    r = linear.x @ w.T + inputs[1] @ v.T - linear.y
    moved = [a @ e.T for a, e in zip(inputs, errors(linear, *pair), strict=True)]

    def change(by: np.ndarray) -> np.ndarray:
        return (r * by).sum(axis=1) + (by**2).sum(axis=1) / 2

    matrices = [row for row in linear.rows["matrices"] if (row["quantizer"], row["bits"]) == pair]
    for row, by in zip(matrices, moved, strict=True):
        each = change(by)
        assert row["slope_nats"] == pytest.approx((r * by).sum(axis=1).mean(), abs=1e-10)
        for name in ("predicted_nats", "predicted_gn_nats", "measured_nats"):
            assert row[name] == pytest.approx(each.mean(), abs=1e-10)
        assert row["measured_se_nats"] == pytest.approx(each.std(ddof=1) / N**0.5)
        assert row["verdict"] == row["verdict_gn"] == "agrees"
    (total,) = [row for row in linear.rows["totals"] if (row["quantizer"], row["bits"]) == pair]
    together = change(moved[0] + moved[1])
    for name in ("predicted_nats", "predicted_gn_nats", "measured_nats"):
        assert total[name] == pytest.approx(together.mean(), abs=1e-10)
    beyond = (moved[0] * moved[1]).sum(axis=1)  # the cross term is what the sum of the single ones lacks
    assert total["beyond_sum_nats"] == pytest.approx(beyond.mean(), abs=1e-10)
    assert total["beyond_sum_se_nats"] == pytest.approx(beyond.std(ddof=1) / N**0.5)
    assert abs(beyond.mean()) > 1e-3
    assert total["measured_alone_nats"] == pytest.approx(total["predicted_alone_nats"], abs=1e-10)
    assert total["error_squared"] == pytest.approx(sum((e**2).sum() for e in errors(linear, *pair)))
    assert "the quadratic model holds" in total["reading"]


def test_the_model_is_as_it_was_and_the_facts_say_what_was_done(linear):
    for name, p in linear.model.named_parameters():
        assert torch.equal(p, linear.space.centre[name])
    assert linear.facts["baseline"]["loss_nats"] > 0
    assert linear.facts["objectives"]["samples"] == N
    assert linear.facts["cost"]["products"] == 2 * 2 * len(PAIRS)  # two operators, two matrices


def test_curvatures_are_those_of_the_dense_hessian():
    """Of a bent network, part by part and whole, against the full matrix by torch.func."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False)).double()
    x, y = torch.randn(10, 3, dtype=torch.float64), torch.randint(3, (10,))
    space = Space(model, ["0.weight", "2.weight"])
    shapes = [p.shape for p in space.centre.values()]

    def loss(flat):
        w, v = (part.view(s) for part, s in zip(flat.split([12, 12]), shapes, strict=True))
        return nn.functional.cross_entropy(torch.tanh(x @ w.T) @ v.T, y)

    flat = torch.cat([p.flatten() for p in space.centre.values()])
    h = torch.autograd.functional.hessian(loss, flat)
    e = {name: torch.randn_like(p) for name, p in space.centre.items()}
    with Hessian(Objective(model, x, y), space) as operator:
        each, whole = curvatures(operator, e)
    parts = [v.flatten() for v in e.values()]
    assert each["0.weight"] == pytest.approx(float(parts[0] @ h[:12, :12] @ parts[0]))
    assert each["2.weight"] == pytest.approx(float(parts[1] @ h[12:, 12:] @ parts[1]))
    assert whole == pytest.approx(float(torch.cat(parts) @ h @ torch.cat(parts)))
    assert whole != pytest.approx(sum(each.values()), rel=1e-3)


def test_where_the_loss_is_steeper_than_its_curvature_the_model_fails_and_says_so():
    """A fourth power has no curvature at its minimum: nothing is predicted, much is measured."""
    model = nn.Linear(IN, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(0.1, 2.0, IN))
    x = torch.rand(N, IN, dtype=torch.float64) + 0.5
    targets = (x @ model.weight.detach().T).squeeze(1)

    def fourth(logits, y):
        return 100 * (logits.squeeze(1) - y) ** 4

    rows, _ = survive(Objective(model, x, targets, loss=fourth), Space(model, ["weight"]), [("gaussian_l1", 1)])
    (one,), (total,) = rows["matrices"], rows["totals"]
    assert abs(one["predicted_nats"]) < 1e-12 < 0.01 < one["measured_nats"]
    assert one["verdict"] == total["verdict"] == "fails"
    assert (total["failing"], total["matrices"]) == (1, 1)
    assert "the quadratic model fails" in total["reading"]


@pytest.mark.parametrize(
    ("predicted", "measured", "error", "said"),
    [
        (1.4, 1.0, 0.01, "agrees"),
        (0.5, 1.0, 0.01, "agrees"),
        (1.6, 1.0, 0.01, "fails"),
        (1.6, 1.0, 0.31, "within error"),
        (-0.1, 0.1, 0.01, "fails"),
        (0.0, 0.0, 0.0, "agrees"),
        (1.0, np.inf, np.nan, "fails"),
        (np.nan, 1.0, 0.1, "fails"),
        (2.0, 1.0, np.nan, "fails"),
    ],
)
def test_the_rule(predicted, measured, error, said):
    assert verdict(predicted, measured, error) == said


def test_correlations_are_within_a_bit_width_and_not_across():
    """Across bit-widths ||e||^2 ranks well, since errors grow with fewer bits; within one it is put in reverse here."""
    rows = []
    for bits, size in ((1, 100.0), (2, 1.0)):
        for i in range(6):
            value = size * (1 + i / 10)
            rows.append(
                {
                    "task": "t", "label": "l", "method": "full", "dim": 0, "seed": 0, "run": "r", "quantizer": "nf",
                    "bits": bits, "measured_nats": value, "measured_se_nats": value if i < 2 else 0.0,
                    "predicted_nats": value**2, "predicted_gn_nats": 1.0, "error_squared": size * (2 - i / 10),
                }
            )  # fmt: skip
    found = correlations(pd.DataFrame(rows)).set_index(["bits", "predictor"])
    for bits in (1, 2):
        assert found.loc[(bits, "hessian"), ["spearman", "lead", "matrices", "resolved"]].tolist() == [1, 2, 6, 4]
        assert found.loc[(bits, "error_squared"), ["spearman", "lead"]].tolist() == [-1, 0]
        assert np.isnan(found.loc[(bits, "gauss_newton"), "spearman"])


OPTIONS = Options(samples=16, batch_size=16, quiet=True)
SPEC = RunSpec(
    task="digits", train_size=40, test_size=20, backbone="random:test_vit", img_size=32, dim=3,
    recipe=Recipe(epochs=1, batch_size=16, lr=2e-2, warmup_epochs=0),
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    task = load("digits", train_size=40, test_size=20)
    return fit(SPEC, task, tmp_path_factory.mktemp("runs"), quiet=True).path


def test_the_command_measures_what_the_rounded_model_does(command, run, tmp_path):
    """Against a model of its own, its factors replaced by hand; and a second call finds the tables."""
    from figures.tables import read_provenance, read_tables
    from quant.quantizers import get
    from train.run import Run

    copy = shutil.copytree(run, tmp_path / run.name)
    told = command("analyses.survive", copy, "--samples", 16, "--bits", 1, 8)
    assert told.returncode == 0, told.stderr
    assert "rank correlation over" in told.stderr
    assert "the quadratic model" in told.stdout
    tables = {name: t.frame for name, t in read_tables(copy / "tables" / "survive").items()}
    assert set(tables) == {"matrices", "totals", "correlations"}
    assert (copy / "figures" / "survive.png").exists()
    opened = Run.open(copy)
    model, names = opened.model(), set(tables["matrices"].tensor)
    assert len(names) == 2 * len(model.blocks)
    order = np.sort(np.random.default_rng(0).permutation(32)[:16])
    x, y = (t[order] for t in opened.tensors("train"))

    def loss() -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(x).double(), y))

    before = loss()
    totals = tables["totals"].set_index("bits")
    for bits in (1, 8):
        changed = opened.model()
        with torch.no_grad():
            for name, p in changed.named_parameters():
                if name in names:
                    grid = get("gaussian_l1", bits).fit(p)
                    p.copy_(grid.values(grid.codes(p)))
        model = changed
        assert totals.measured_nats[bits] == pytest.approx(loss() - before, abs=1e-6)
    assert abs(totals.measured_nats[8]) < 0.1 * abs(totals.measured_nats[1])
    provenance = read_provenance(copy / "tables" / "rounding")["measured"]["factors"]
    assert {"space", "mode", "dtype", "device", "objectives", "baseline", "cost", "directions"} <= set(provenance)
    made = (copy / "tables" / "survive" / "totals.csv").stat().st_mtime_ns
    assert command("analyses.survive", copy, "--samples", 16, "--bits", 1, 8).returncode == 0
    assert (copy / "tables" / "survive" / "totals.csv").stat().st_mtime_ns == made


def test_it_asks_for_something_to_round(tmp_path_factory):
    from dataclasses import replace

    from analyses.checkpoint import open_checkpoint

    task, out = load("digits", train_size=40, test_size=20), tmp_path_factory.mktemp("runs")
    cases = [(replace(SPEC, bits=1), "expected a 32-bit checkpoint"), (replace(SPEC, method="linear"), "but its head")]
    for spec, text in cases:
        checkpoint = open_checkpoint(fit(spec, task, out, quiet=True).path, OPTIONS)
        with pytest.raises(AnalysisError, match=text) as error:
            ANALYSIS.compute(checkpoint, OPTIONS, Survive(), None)
        assert "\n" not in str(error.value)
