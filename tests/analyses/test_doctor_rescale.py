"""The doctor's rescale: exact on residual networks too, said where none is known, and printed."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pandas as pd
import pytest
import timm
import torch

from analyses.doctor import ANALYSIS, Doctor, changes, left_as_is, rescale
from analyses.options import Options
from landscape import Objective, Space


def statistics_of_training(model: torch.nn.Module) -> torch.nn.Module:
    g = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            with torch.no_grad():
                module.running_mean.normal_(generator=g)
                module.running_var.uniform_(0.5, 2.0, generator=g)
                module.weight.uniform_(0.5, 2.0, generator=g)
                module.bias.normal_(generator=g)
    return model.eval()


@pytest.mark.parametrize("name", ["test_resnet", "resnet10t", "resnet26"])
def test_the_rescale_of_a_residual_block_leaves_the_function_to_the_bit(name):
    torch.manual_seed(0)
    model = statistics_of_training(timm.create_model(name, num_classes=4))
    found = rescale(model, "full", 4.0)
    assert found is not None
    what, factors = found
    assert "behind its ReLU" in what
    assert len(factors) == 3
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(x)
        for tensor, factor in factors.items():
            model.get_parameter(tensor).mul_(factor)
        assert torch.equal(model(x), before)  # a power of two rounds nothing
        model.get_parameter(next(iter(factors))).mul_(0.25)
        assert not torch.equal(model(x), before), "the rescaled block carries nothing: the test shows nothing"


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext"])
def test_no_rescale_is_known_behind_another_nonlinearity(name):
    assert rescale(timm.create_model(name, num_classes=4), "full", 4.0) is None


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)

    def forward(self, x):
        return self.layer(x)


def test_an_architecture_without_a_rescale_says_so_in_its_checks(tmp_path):
    torch.manual_seed(0)
    model = Net()
    objective = Objective(model, torch.randn(8, 3), torch.randint(0, 4, (8,)))
    checkpoint = SimpleNamespace(
        label="net", method="full", identity="net", folder=tmp_path, labels=lambda: {"run": "net"},
        spaces=lambda: ["full"],
        space=lambda kind: Space(model, ["layer.weight"]), objectives=lambda *_: {"train": objective},
    )  # fmt: skip
    tables, _ = ANALYSIS.compute(checkpoint, Options(quiet=True), Doctor(), None)
    (row,) = tables["checks"][tables["checks"].check == "rescale"].itertuples()
    assert row.outcome == "not known"
    assert row.meaning.startswith("not applicable")
    assert math.isnan(row.figure)
    assert changes(tables["rescale"]) == []


def test_a_rescale_that_changes_the_function_fails():
    assert left_as_is("w", 1e-5, 2.0).outcome == "pass"
    assert left_as_is("w", 0.1, 2.0).outcome == "fail"
    assert left_as_is("w", math.nan, 2.0).outcome == "fail"


def test_what_each_measure_made_of_a_rescale_is_one_line():
    rows = pd.DataFrame({"measure": ["average", "trace"], "ratio": [1.0, 12.3456]})
    (line,) = changes(rows.assign(run="r", space="full", rescale="gain times 4"))
    assert line == "r, full space, gain times 4: average x 1; trace x 12.35"
