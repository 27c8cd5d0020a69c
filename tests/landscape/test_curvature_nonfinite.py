"""Curvature at weights that are inf or NaN: no number, and a warning that counts them."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from landscape_nets import Mlp, data, seeded

from landscape import Objective, Space
from landscape.curvature import Hessian, hutchinson, top_eigenvalues


@pytest.mark.parametrize("measure", [lambda h: top_eigenvalues(h, 1).status, lambda h: hutchinson(h).status])
def test_weights_that_are_no_numbers_are_counted_once(measure):
    model = seeded(Mlp)
    total = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        model.up.weight[0, :2] = torch.tensor([math.nan, math.inf])
        model.down.weight[0, 0] = math.nan
    hessian = Hessian(Objective(model, *data(Mlp)), Space(model, ["up.weight"]))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        first, second = measure(hessian), measure(hessian)
    assert first == second == "diverged"
    counted = [str(w.message) for w in said if "inf or NaN" in str(w.message)]
    assert counted == [f"3 of the model's {total:,} weights are inf or NaN: curvature at them is no number"]


def test_finite_weights_are_not_warned_of():
    model = seeded(Mlp)
    hessian = Hessian(Objective(model, *data(Mlp)), Space(model, ["up.weight"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        top_eigenvalues(hessian, 1)
