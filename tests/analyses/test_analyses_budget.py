"""A file of so many bytes: it fits, it is what the tables say, and sensitive matrices get more than others."""

from __future__ import annotations

import csv
import io
import re

import pytest
import torch

from analyses import budget
from analyses.budget import ANALYSIS, Budget
from analyses.candidates import candidates, groups, hidden_moments
from analyses.checkpoint import open_checkpoint
from analyses.errors import AnalysisError
from analyses.options import Options
from analyses.pack import padded
from analyses.rounding import rounded_space
from quant.lowbit import read_lowbit, to_bytes
from train.loop import fit
from train.recipe import Recipe
from train.spec import RunSpec
from train.tasks import load

OPTIONS = Options(samples=20, batch_size=20, quiet=True, train_size=40)
SPEC = RunSpec(
    task="digits", train_size=40, backbone="random:test_vit", img_size=32, dim=4, bits=32,
    recipe=Recipe(epochs=2, batch_size=8, lr=2e-2, warmup_epochs=0),
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    task = load("digits", train_size=40)
    return open_checkpoint(fit(SPEC, task, tmp_path_factory.mktemp("runs"), quiet=True).path, OPTIONS)


@pytest.fixture(scope="module")
def setting(checkpoint):
    space = rounded_space(checkpoint)
    return space, checkpoint.objectives(space.model, ("train",), OPTIONS)["train"]


def test_moments_are_those_of_the_hidden_units(setting):
    """Against a pass by hand of the first block's adapter."""
    space, objective = setting
    down, up = groups(space)[0]
    seen = []
    module = space.model.get_submodule(up.removesuffix(".weight"))
    hook = module.register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
    objective.evaluate()
    hook.remove()
    z = torch.cat([x.flatten(0, -2) for x in seen]).double()
    torch.testing.assert_close(hidden_moments(space, objective)[up], z.T @ z / len(z))
    assert len(space.centre[down]) == z.shape[1] == 4


def test_a_choice_costs_the_divergence_that_it_alone_causes(setting):
    space, objective = setting
    found = candidates(space, objective, "gaussian_l1/f16", (1, 8))
    first, choices = next(iter(found.items()))
    assert set(choices) == {(units, bits) for units in (4, 2, 1) for bits in (1, 8)}
    model = space.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        log_p = torch.log_softmax(model(objective.inputs["0"]).double(), dim=1)
        for t in choices[2, 8].tensors:
            assert t.shape[0 if "down" in t.name else 1] == 2
            model.get_parameter(t.name).copy_(padded(t.dense(), before[t.name].shape))
        log_q = torch.log_softmax(model(objective.inputs["0"]).double(), dim=1)
        for name in first:
            model.get_parameter(name).copy_(before[name])
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=1).mean().item()
    assert choices[2, 8].damage == pytest.approx(kl, abs=1e-9)
    assert choices[4, 8].damage < choices[4, 1].damage


def test_the_file_fits_and_opens_as_what_it_says(checkpoint, command):
    path = checkpoint.folder / "budget-500.lowbit"
    done = command("analyses.budget", checkpoint.path, "--bytes", "500", "--samples", "20", "--bits", "1", "2", "4")
    assert done.returncode == 0
    rows = {row["how"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    lowbit = read_lowbit(path)
    assert int(rows["allocated"]["adapter_bytes"]) == len(to_bytes(lowbit.without_head())) <= 500
    assert int(rows["uniform"]["adapter_bytes"]) <= 500
    opened = open_checkpoint(path, OPTIONS)
    x, y = checkpoint.data("test", 20)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(opened.model(x).double(), y).item()
    assert float(rows["allocated"]["loss_nats"]) == pytest.approx(loss, rel=1e-6)


def test_a_budget_that_was_interrupted_leaves_the_file_of_the_tables(checkpoint, command, monkeypatch, tmp_path):
    """Killed while measuring, between the tables of the checkpoint and the joined ones, and with a file changed."""
    import analyses.pack
    from analyses.command import Analysis

    target = tmp_path / "x.lowbit"

    def asked(size: int) -> int:
        given = ("--bytes", size, "--samples", "20", "--bits", "1", "2", "--json", "-o", target)
        return command("analyses.budget", checkpoint.path, *given).returncode

    def kill(*_):
        raise KeyboardInterrupt

    assert asked(500) == 0
    first = target.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(analyses.pack, "measured", kill)
        assert asked(400) == 130
    assert asked(500) == 0
    assert target.read_bytes() == first
    with monkeypatch.context() as patch:
        patch.setattr(
            Analysis, "report", lambda self, of, options, spec, *_: self.measure(of[0], options, spec) and kill()
        )
        assert asked(400) == 130
    assert asked(500) == 0
    assert target.read_bytes() == first
    for stored in (checkpoint.folder / "tables" / "budget-file").glob("*.lowbit"):
        stored.write_bytes(b"changed")
    assert asked(500) == 0
    assert target.read_bytes() == first


def test_a_budget_that_nothing_fits_is_an_error_that_says_what_would(checkpoint):
    with pytest.raises(AnalysisError, match=r"--bytes 50: expected a budget of at least \d+ bytes") as caught:
        ANALYSIS.compute(checkpoint, OPTIONS, Budget(bytes=50, bits=(1, 8)), None)
    least = int(re.findall(r"\d+", str(caught.value))[-1])
    tables, _ = ANALYSIS.compute(checkpoint, OPTIONS, Budget(bytes=least, bits=(1, 8)), None)
    assert set(tables["files"]["adapter_bytes"]) == {least}
    with pytest.raises(AnalysisError, match=f"at least {least} bytes"):
        ANALYSIS.compute(checkpoint, OPTIONS, Budget(bytes=least - 1, bits=(1, 8)), None)


def test_what_coding_saves_is_given_to_the_matrices(checkpoint, setting, monkeypatch):
    """A file of 20 bytes and half of its dense tensors holds as much as could be chosen of twice the rest."""
    encoded = []

    def half(file):
        encoded.append(file)
        return 20 + sum(file.without_head().sizes().values()) // 2

    monkeypatch.setattr(budget, "_size", half)
    found = candidates(*setting, "gaussian_l1/f16", (1, 2, 3, 4))
    for choose in (budget._shared_out, budget._uniform):
        for size in range(120, 500, 20):
            encoded.clear()
            file, _, chosen = budget._fitting(checkpoint, OPTIONS, Budget(bytes=size), found, choose)
            assert len(encoded) <= budget.MOST_ENCODED
            assert half(file) == 20 + budget._dense(found, chosen) // 2 <= size
            most = choose(found, 2 * (size - 20) + 1)
            assert budget._damage(found, chosen) <= budget._damage(found, most)


def test_a_file_of_several_bits_says_the_most(checkpoint, setting):
    found = candidates(*setting, "gaussian_l1/f16", (1, 2, 4))
    mixed = 0
    for size in range(300, 500, 50):
        file, _, chosen = budget._fitting(checkpoint, OPTIONS, Budget(bytes=size), found, budget._shared_out)
        bits = {bits for _, bits in chosen.values()}
        mixed += len(bits) > 1
        assert file.header["bits"] == max(bits)
    assert mixed


@pytest.mark.parametrize("module", ["analyses.budget", "analyses.pack"])
def test_a_path_that_cannot_be_written_is_refused_before_the_work(checkpoint, command, tmp_path, module):
    (tmp_path / "folder.lowbit").mkdir()
    (tmp_path / "plain").write_text("")
    bytes_ = ("--bytes", "450") if module == "analyses.budget" else ()
    for output, said in {
        "x.bin": "expected a file that ends in .lowbit, found x.bin",
        "folder.lowbit": "expected a file to write, found the folder",
        "plain/x.lowbit": "expected a folder that can be written to, found",
        "plain/a/b/x.lowbit": "expected a folder that can be written to, found",
    }.items():
        done = command(module, checkpoint.path, *bytes_, "--samples", "20", "-o", tmp_path / output)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1  # nothing was begun
    done = command(module, checkpoint.path, *bytes_, "--samples", "20", "-o", tmp_path / "new" / "er" / "x.lowbit")
    assert done.returncode == 0
    assert [path.name for path in (tmp_path / "new" / "er").iterdir()] == ["x.lowbit"]
