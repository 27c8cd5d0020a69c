"""Smaller adapters: planted repeats merge without a trace, what is measured is what is stored, verdicts by hand."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from analyses.branches import measure, with_pairs
from analyses.collapse import Sizes, findings, verdicts
from analyses.errors import AnalysisError
from analyses.smaller import exact, merged, predicted, pruned, requantised, summary
from quant.content import Lowbit, LowbitTensor
from train.methods._parts import LowRank


class Net(nn.Module):
    """Two branches of the kind that the methods insert, the second on what the first gives."""

    def __init__(self, act: type[nn.Module], dim: int = 6) -> None:
        super().__init__()
        self.a = LowRank(8, dim, 8, bits=32, quantizer="gaussian_l1", act=act())
        self.b = LowRank(8, dim, 8, bits=32, quantizer="gaussian_l1", act=act())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.a(x)
        return (x + self.b(x)).mean(dim=1)


@pytest.fixture(params=[nn.ReLU, nn.Identity])
def net(request) -> Net:
    """Branch a has four different units of six, branch b five."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net(request.param).eval()
        for branch in (net.a, net.b):
            nn.init.normal_(branch.down.weight)
            nn.init.normal_(branch.up.weight)
        with torch.no_grad():
            net.a.down.weight[3] = 2 * net.a.down.weight[1]
            net.a.down.weight[5] = net.a.down.weight[0]
            net.b.up.weight[:, 2] = 0
    return net


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(50, 3, 8, generator=torch.Generator().manual_seed(1))


def stored(net: Net, bits: int = 32, quantizer: str = "gaussian_l1") -> Lowbit:
    tensors = [
        LowbitTensor.plain(n, w) if bits == 32 else LowbitTensor.quantised(n, w, quantizer=quantizer, bits=bits)
        for n, w in net.state_dict().items()
    ]
    return Lowbit(header={"dim": 6, "bits": bits}, tensors=tensors)


def test_moments_are_those_of_the_hidden_units(net, x):
    found = measure(net, x, 16)
    with torch.no_grad():
        z = net.a.act(net.a.down(x)).double().flatten(0, 1)
    torch.testing.assert_close(found["a"].moments, z.T @ z / 150, rtol=1e-5, atol=1e-6)
    assert list(found) == ["a", "b"]
    assert found["b"].linear == isinstance(net.b.act, nn.Identity)
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_repeats_merge_without_a_trace(net, x):
    """Units that are equal up to a positive factor, and one without output: the function stays to 1e-6."""
    found = measure(net, x, 50)
    about = summary(found, 1e-6).set_index("module")
    assert about.exact_units.to_dict() == {"a": 4, "b": 5}
    small = with_pairs(net, exact(found, 1e-6))
    assert small.a.down.weight.shape == (5, 8)
    with torch.no_grad():
        assert float((small(x) - net(x)).abs().max()) < 1e-6 * float(net(x).abs().max())
    assert net.a.down.weight.shape == (6, 8)  # the model itself stays as it was


@torch.no_grad()
def test_fewer_units_lose_less_when_merged_than_when_pruned(net, x):
    found = measure(net, x, 50)
    outputs = net(x).detach()
    errors = {}
    for how, file in (
        ("merged", requantised(stored(net), merged(found, 3), bits=32)),
        ("pruned", pruned(stored(net), found, 3)),
    ):
        dense = {t.name: t.dense() for t in file.tensors}
        pairs = {name: (dense[f"{name}.down.weight"], dense[f"{name}.up.weight"]) for name in found}
        assert file.header["dim"] == 3
        errors[how] = float((with_pairs(net, pairs)(x) - outputs).square().mean())
    assert 0 < errors["merged"] < errors["pruned"]
    assert float((with_pairs(net, merged(found, 5))(x) - outputs).abs().max()) < 1e-3


def test_the_units_of_most_output_stay(net, x):
    found = measure(net, x, 50)
    file = {t.name: t.dense() for t in pruned(stored(net), found, 2).tensors}
    with torch.no_grad():
        z = net.b.act(net.b.down(x + net.a(x)))
        outputs = [float((z[..., j, None] * net.b.up.weight[:, j]).square().sum(-1).mean().sqrt()) for j in range(6)]
    best = sorted(np.argsort(outputs)[-2:])
    torch.testing.assert_close(file["b.up.weight"], net.b.up.weight[:, best])
    torch.testing.assert_close(file["b.down.weight"], net.b.down.weight[best])


@pytest.mark.parametrize("quantizer", ["gaussian_l1", "gaussian_l1/row", "gaussian_l1/group16"])
def test_pruned_codes_keep_their_values_where_the_grid_allows(net, x, quantizer):
    file = stored(net, 2, quantizer)
    whole = {t.name: t.dense() for t in file.tensors}
    small = {t.name: t for t in pruned(file, measure(net, x, 50), 4).tensors}
    for name in ("a.down.weight", "a.up.weight"):
        axis = 0 if "down" in name else 1
        assert small[name].bits == 2
        assert small[name].shape[axis] == 4
        if quantizer == "gaussian_l1" or (quantizer == "gaussian_l1/row" and axis == 1):
            rows = {tuple(row.tolist()) for row in whole[name].movedim(axis, 0)}
            assert all(tuple(row.tolist()) in rows for row in small[name].dense().movedim(axis, 0))


def test_the_predicted_size_is_the_outputs_rank():
    assert predicted(pd.DataFrame({"output_rank": [1.2, 3.1, 2.0]})) == 4


def rows(how: str, size: int, gained: int, lost: int, seed: int = 0, n: int = 1000) -> dict[str, object]:
    return {
        "task": "t", "label": "a", "run": f"a.{seed}", "seed": seed, "how": how, "size": size, "stored_bits": 32,
        "gained": gained, "lost": lost, "images": n, "accuracy_change": (gained - lost) / n,
        "adapter_bytes": 100 * size, "file_bytes": 100 * size + 50,
    }  # fmt: skip


def test_verdicts_over_images_and_the_sequence_of_sizes():
    """h=4 changes nothing and holds; h=2 is not shown; h=1 would hold by itself, but the sequence has ended."""
    own = rows("as trained", 8, 0, 0)
    sizes = pd.DataFrame([own, rows("merged", 1, 3, 3), rows("merged", 2, 10, 20), rows("merged", 4, 0, 0)])
    found = verdicts({"sizes": sizes})["verdicts"].set_index("size")
    assert found.verdict.to_dict() == {4: "holds", 2: "undecided", 1: "holds"}
    assert found.carried.to_dict() == {4: True, 2: False, 1: False}
    assert found.margin.eq(-0.01).all()
    assert found.adapter_bytes[4] == 400
    assert found.trained_adapter_bytes[4] == 800
    about = pd.DataFrame(
        {"run": "a", "module": "m", "units": 8, "exact_units": 8, "product_rank": 3.3, "output_rank": 2.5}, index=[0]
    )
    lines = findings({"branches": about, "verdicts": found.reset_index()})
    assert "behave like h=3" in lines[0]
    assert "h=4 carries it" in lines[1]


def test_verdicts_over_seeds_when_there_are_some():
    own = [rows("as trained", 8, 0, 0, seed) for seed in range(5)]
    smaller = [rows("retrained", 4, 10 + seed, 20, seed) for seed in range(5)]
    worse = [rows("pruned", 4, 0, 300 + seed, seed) for seed in range(5)]
    found = verdicts({"sizes": pd.DataFrame(own + smaller + worse)})["verdicts"].set_index("how")
    assert found.unit.eq("training seed").all()
    assert found.n.eq(5).all()
    assert found.effect["retrained"] == pytest.approx(-0.008)
    assert found.verdict.to_dict() == {"retrained": "holds", "pruned": "does not hold"}


def test_the_command_shrinks_a_run_and_trains_the_smaller_one(done, command, tmp_path):
    run = tmp_path / done.run("adaptformer", 8, 1).name
    shutil.copytree(done.run("adaptformer", 8, 1), run)
    arguments = ["analyses.collapse", run, "--samples", 16, "--sizes", 2, "--retrain"]
    said = command(*arguments)
    assert said.returncode == 0, said.stderr
    from figures.tables import read_tables

    tables = {name: table.frame for name, table in read_tables(run / "tables" / "collapse").items()}
    sizes = tables["sizes"].set_index(["how", "stored_bits"])
    assert list(sizes.index) == [("as trained", 1), ("merged", 32), ("merged", 1), ("pruned", 1), ("retrained", 1)]
    assert sizes["size"].tolist() == [8, 2, 2, 2, 2]
    from quant.lowbit import read_lowbit

    small = next((run / "retrained").glob("*")) / "adapter.lowbit"
    assert sizes.adapter_bytes["pruned"].tolist() == sizes.adapter_bytes["retrained"].tolist()
    assert sizes.file_bytes["retrained"].iloc[0] == small.stat().st_size
    assert read_lowbit(small).header["dim"] == 2
    assert (sizes.images == 40).all()
    own = sizes.loc[("as trained", 1)]
    assert own.accuracy == pytest.approx(done_metric(run, "test_accuracy"))
    assert own.loss_nats == pytest.approx(done_metric(run, "test_loss_nats"), rel=1e-5)
    merged_row = sizes.loc[("merged", 32)]
    assert merged_row.accuracy_change == pytest.approx((merged_row.gained - merged_row.lost) / 40)
    assert (run / "figures" / "collapse.pdf").exists()
    assert "effective rank of the products" in said.stderr
    again = command(*arguments)
    assert again.stdout == said.stdout


def done_metric(run, name: str) -> float:
    from train.run import Run

    return Run.open(run).metrics[name]


def test_what_cannot_be_shrunk_is_one_line(done, command, net, x):
    for arguments, text in (
        ([done.run("full"), "--quiet"], "expected the run of an adapter"),
        ([done.run("adaptformer", 8, 1), "--quiet", "--sizes", 8], "sizes from 1 to below the adapter's 8, found 8"),
    ):
        said = command("analyses.collapse", *arguments)
        assert said.returncode == 2
        assert text in said.stderr
    net.a.act = nn.GELU()
    with pytest.raises(AnalysisError, match="through a ReLU or nothing"):
        measure(net, x, 50)
    with pytest.raises(AnalysisError, match="found none in Linear"):
        measure(nn.Linear(2, 2), x, 50)
    assert Sizes().sizes == ()
