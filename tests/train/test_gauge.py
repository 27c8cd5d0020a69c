"""The balanced gauge against what defines it: the same product, equal Gram matrices, one pair for all of GL(r)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_nets import adapted, pairs, regauged

from train import methods
from train.errors import TrainError
from train.methods._gauge import balance


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(2, 9), st.integers(2, 9), st.integers(0, 10**6))
def test_the_balanced_pair_is_what_defines_it(rank, outputs, inputs, seed):
    g = torch.Generator().manual_seed(seed)
    up = torch.randn(outputs, rank, generator=g, dtype=torch.float64)
    down = torch.randn(rank, inputs, generator=g, dtype=torch.float64)
    b, a = balance(up, down)
    assert (b.shape, a.shape) == (up.shape, down.shape)
    torch.testing.assert_close(b @ a, up @ down, rtol=1e-9, atol=1e-9)
    # B^T B = A A^T = the singular values of the product, largest first
    values = torch.linalg.svdvals(up @ down)[:rank]
    values = torch.nn.functional.pad(values, (0, rank - len(values)))
    for gram in (b.T @ b, a @ a.T):
        torch.testing.assert_close(gram, torch.diag(values), rtol=1e-9, atol=1e-9)
    assert b.norm() ** 2 + a.norm() ** 2 <= up.norm() ** 2 + down.norm() ** 2 + 1e-9
    for column in b.T[values > 1e-6]:
        assert column[column.abs().argmax()] > 0


def test_rule_9_the_function_stays_and_the_pair_is_one_for_all_gauges():
    model, x = adapted(), torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = {name: w.clone() for name, w in model.state_dict().items()}
    found = methods.get("lora").balanced(model)
    assert (found(x) - model(x)).abs().max() < 1e-9
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items()), "the model itself is untouched"
    assert [n for n, _ in found.named_parameters()] == [n for n, _ in model.named_parameters()]
    others = [n for n, w in found.named_parameters() if not torch.equal(w, before[n])]
    assert others == methods.get("lora").adapter_names(model)
    for seed in range(5):
        other = regauged(model, seed)
        assert (other(x) - model(x)).abs().max() < 1e-9
        twin = methods.get("lora").balanced(other)
        for p, q, r in zip(pairs(found), pairs(twin), pairs(other), strict=True):
            torch.testing.assert_close(q.up.weight, p.up.weight, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(q.down.weight, p.down.weight, rtol=1e-9, atol=1e-9)
            assert not torch.allclose(r.up.weight, p.up.weight)


def test_a_pair_whose_product_is_zero_stays_zero():
    model = adapted(stir=False)  # up starts at zero
    found = methods.get("lora").balanced(model)
    assert all(not pair.up.weight.any() and not pair.down.weight.any() for pair in pairs(found))


def test_what_cannot_be_balanced_is_one_line():
    for model, method, text in [
        (adapted(bits=1), "lora", "their codes would change"),
        (adapted("adaptformer"), "adaptformer", "nonlinearity between its matrices"),
        (methods.get("lora").merge(adapted()), "lora", "found none in VisionTransformer"),
    ]:
        with pytest.raises(TrainError, match=text) as error:
            methods.get(method).balanced(model)
        assert "\n" not in str(error.value)
