"""Products with Hessian, Gauss-Newton and Fisher matrices against dense derivatives and closed forms."""

from __future__ import annotations

import gc
import resource
import sys
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from curvature_oracles import CLASSES, NETS, Bowl, case, dense_hessian, dense_jacobian, symmetric
from hypothesis import given, settings
from hypothesis import strategies as st
from landscape_nets import Mlp, data, everything, seeded
from torch import nn
from torch.autograd.functional import hessian

from landscape import LandscapeError, Objective, Space, draw, line
from landscape.curvature import CentralDifference, Fisher, GaussNewton, Hessian


def moving(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def matrix(operator) -> torch.Tensor:
    """All columns of an operator."""
    with operator:
        return operator.products(torch.eye(operator.size, dtype=operator.dtype))


def agree(operator, expected: torch.Tensor) -> None:
    """Products with a few random vectors equal those of a matrix, which is right in its every entry only."""
    v = torch.randn(5, operator.size, generator=torch.Generator().manual_seed(5), dtype=operator.dtype)
    with operator:
        torch.testing.assert_close(operator.products(v), v @ expected.T, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("batch", [4, None])
@pytest.mark.parametrize("name", NETS)
def test_the_hessian_equals_the_dense_one(name: str, batch: int | None):
    """Rule 17: frozen, unused and shared parameters, BatchNorm, fused attention, an unequal last batch (9 = 4+4+1)."""
    model, x, y = case(name)
    operator = Hessian(Objective(model, x, y), Space(model, moving(model)), batch_size=batch)
    expected = dense_hessian(model, x, y, operator.space.names)
    assert expected.abs().max() > 0.01
    agree(operator, expected)
    assert operator.graphs.kept == 0.0  # closed
    assert operator.cost["products"] == 5


def test_some_tensors_give_their_block_of_the_hessian():
    model, x, y = case("vit")
    whole = Space(model, moving(model))
    some = ["up.weight", "scale", "mix.weight"]
    inside = torch.cat([torch.full((p.numel(),), n in some) for n, p in whole.parameters.items()])
    operator = Hessian(Objective(model, x, y), Space(model, some))
    expected = dense_hessian(model, x, y, whole.names)[inside][:, inside]
    torch.testing.assert_close(matrix(operator), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_the_hessian_is_symmetric(seed: int):
    """Rule 17: u'Hv = v'Hu."""
    model, x, y = case("attention")
    operator = Hessian(Objective(model, x, y), Space(model, moving(model)), batch_size=5)
    u, v = torch.randn(2, operator.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with operator:
        assert float(u @ operator.product(v)) == pytest.approx(float(v @ operator.product(u)), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("name", ["attention", "conv", "partly", "tied"])
def test_the_hessian_equals_differences_of_gradients(name: str):
    """Rule 17, with gradients by plain backward() at weights that a plain loop moves."""
    model, x, y = case(name)
    operator = Hessian(Objective(model, x, y), Space(model, moving(model)))
    v = torch.randn(operator.size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with operator:
        found = operator.unflatten(operator.product(v))
    saved, gradients = {n: p.detach().clone() for n, p in model.named_parameters()}, []
    model.requires_grad_(True)
    for sign in (1, -1):
        with torch.no_grad():
            for n, step in operator.unflatten(v).items():
                dict(model.named_parameters())[n].copy_(saved[n] + sign * 1e-5 * step)
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        gradients.append({n: 0 if p.grad is None else p.grad.clone() for n, p in model.named_parameters()})
    for n in operator.space.names:
        difference = (gradients[0][n] - gradients[1][n]) / 2e-5
        torch.testing.assert_close(found[n], torch.zeros_like(found[n]) + difference, rtol=1e-5, atol=1e-8)


def test_linear_regression_has_its_closed_form():
    """Rule 17: the Hessian of mean (Xw - y)^2 is 2 X'X / N, wherever w is."""
    x, y = torch.randn(13, 6, dtype=torch.float64), torch.randn(13, dtype=torch.float64)
    model = nn.Linear(6, 1, bias=False).double()
    objective = Objective(model, x, y, loss=lambda out, target: (out[:, 0] - target) ** 2)
    for kind in (Hessian, GaussNewton):
        torch.testing.assert_close(matrix(kind(objective, Space(model, ["weight"]), batch_size=4)), 2 * x.T @ x / 13)


def test_logistic_regression_has_its_closed_form():
    """Rule 17: the Hessian is the mean of (diag p - p p') kron x x'; Gauss-Newton and the true Fisher equal it."""
    x, y = torch.randn(13, 5, dtype=torch.float64), torch.randint(3, (13,))
    model = nn.Linear(5, 3, bias=False).double()
    objective, space = Objective(model, x, y), Space(model, ["weight"])
    p = (x @ model.weight.detach().T).softmax(dim=1)
    expected = sum(
        torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(row, row)) for q, row in zip(p, x, strict=True)
    )
    for kind in (Hessian, GaussNewton, Fisher):
        torch.testing.assert_close(matrix(kind(objective, space, batch_size=4)), expected / 13)


def test_a_bowl_gives_its_own_matrix_and_a_linear_loss_none():
    model, a = Bowl(9), symmetric(range(9), dtype=torch.float32)
    x, y = torch.zeros(5, 1), torch.zeros(5)
    bowl = Objective(model, x, y, loss=lambda w, _: (w @ a * w).sum(dim=1) / 2)
    flat = Objective(model, x, y, loss=lambda w, _: w.sum(dim=1))
    space = Space(model, ["w"])
    torch.testing.assert_close(matrix(Hessian(bowl, space, batch_size=2)), a, rtol=1e-5, atol=1e-5)
    for kind in (Hessian, GaussNewton):
        assert not matrix(kind(flat, space)).any()


def test_kept_and_rebuilt_graphs_give_the_same_bits_and_cost_what_they_say():
    model, x, y = case("attention", n=20)
    space, v = Space(model, moving(model)), torch.randn(3, 96, dtype=torch.float64)
    found, kept = [], []
    for keep in (1 << 30, 0, 40_000):
        operator = Hessian(Objective(model, x, y), space, batch_size=4, keep_bytes=keep)
        with operator:
            found += [operator.products(v), torch.stack([operator.product(one) for one in v])]
            kept.append(operator.graphs.kept)
        passes = operator.cost["gradients"]
        # three rows of a call share its pass; graphs of one row and of two are measured first
        assert passes == pytest.approx({1 << 30: 1 + 3 / 20, 0: 4 + 3 / 20}.get(keep, passes))
        assert operator.cost["products"] == 6
    assert kept[:2] == [1.0, 0.0]
    assert 0 < kept[2] < 1
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("operator_of", [Hessian, GaussNewton, Fisher])
def test_products_go_on_after_a_line_was_drawn_inside(operator_of):
    model, x, y = case("vit")
    objective, space = Objective(model, x, y), Space(model, moving(model))
    with operator_of(objective, space) as operator:
        v = torch.ones(operator.size, dtype=operator.dtype)
        before, built = operator.product(v), operator.graphs.built
        line(objective, space, draw(space, 0), [-1.0, 0.0, 1.0])
        assert torch.equal(operator.product(v), before)
        assert operator.graphs.built == built + 1  # anew, since autograd refuses tensors that were written to
        operator.product(v)
        assert operator.graphs.built == built + 1


@pytest.mark.parametrize("kind", [Hessian, GaussNewton, Fisher, CentralDifference])
def test_everything_is_put_back_also_after_an_exception(kind):
    """Rule 3: a failing product, inside ``with``."""
    model = seeded(Mlp, dropout=0.3)
    model.up.weight.requires_grad_(False)
    model.down.bias.grad = torch.ones(CLASSES)
    x, y = data(Mlp)
    operator = kind(Objective(model, x, y), Space(model, ["up.weight", "down.weight"]))
    before = everything(model)
    with operator, torch.no_grad():  # enabled again inside
        operator.product(torch.ones(operator.size))
    assert everything(model) == before
    with pytest.raises(LandscapeError, match="vectors"), operator:
        operator.product(torch.ones(operator.size + 1))
    assert everything(model) == before


def test_graphs_die_with_the_operator_without_a_garbage_collection():
    model, x, y = case("attention")
    operator = Hessian(Objective(model, x, y), Space(model, moving(model)), batch_size=6)
    gc.disable()
    try:
        with operator:
            operator.product(torch.ones(operator.size))
            graphs = [weakref.ref(graph) for graph in operator.graphs]
            tensors = [weakref.ref(t) for graph in operator.graphs for t in graph.tensors]
            assert all(ref() is not None for ref in [*graphs, *tensors])
        assert all(ref() is None for ref in [*graphs, *tensors])
    finally:
        gc.enable()


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize("keep", [None, 0])
def test_memory_is_flat_over_a_thousand_products(keep: int | None):
    """A leak of one vector a product would be 24 MB, of one graph more."""
    model = nn.Sequential(nn.Linear(40, 100), nn.Tanh(), nn.Linear(100, 20))
    objective = Objective(model, torch.randn(6, 40), torch.randint(20, (6,)))
    operator = Hessian(objective, Space(model, moving(model)), keep_bytes=keep)
    v = torch.randn(operator.size)
    with operator:
        for _ in range(20):
            operator.product(v)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(1000):
            operator.product(v)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8_000


def test_memory_that_runs_out_gives_up_graphs_and_then_rows():
    model, x, y = case("mlp", n=12)
    objective, space = Objective(model, x, y), Space(model, moving(model))
    expected = matrix(Hessian(objective, space))

    class Small(Objective):
        def logits(self, rows: slice) -> torch.Tensor:
            if rows.stop - rows.start > 3:
                raise RuntimeError("DefaultCPUAllocator: not enough memory")
            return super().logits(rows)

    objective.check_deterministic()
    small = Small(model, x, y)
    small.evaluate, small.checked = objective.evaluate, True  # type: ignore[method-assign]
    operator = Hessian(small, space)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.testing.assert_close(matrix(operator), expected)
    assert [str(w.message)[-11:] for w in caught] == ["halved to 6", "halved to 3"]
    assert operator.graphs.batch_size == 3


def test_attention_that_differs_without_its_fused_kernel_is_a_warning():
    """Rule 17: the two losses are compared."""

    class Other(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            plain = not torch.backends.cuda.flash_sdp_enabled()
            return super().forward(x) * (1.1 if plain else 1.0)

    x, y = data(Mlp)
    for kind, warned in ((Mlp, False), (Other, True)):
        model = seeded(kind)
        operator = Hessian(Objective(model, x, y), Space(model, moving(model)))
        with warnings.catch_warnings(record=True) as caught, operator:
            warnings.simplefilter("always")
            operator.product(torch.ones(operator.size))
        assert any("differ by more than rounding" in str(w.message) for w in caught) == warned
        assert operator.losses["loss_nats"] == pytest.approx(operator.losses["loss_differentiated_nats"], rel=0.2)


def test_half_precision_is_multiplied_in_its_own_dtype_and_returned_in_float32():
    model, x, y = case("mlp")
    exact = dense_hessian(model, x, y, moving(model))
    low = model.to(torch.bfloat16)
    operator = Hessian(Objective(low, x.to(torch.bfloat16), y), Space(low, moving(low)))
    found = matrix(operator)
    assert found.dtype == torch.float32
    assert float((found.double() - exact).norm() / exact.norm()) < 0.05


def test_a_surrogate_is_refused_unless_asked_for():
    """Rule 13."""
    model, x, y = case("mlp")
    objective, space = Objective(model, x, y), Space(model, moving(model), weights="requantised")
    for kind in (Hessian, GaussNewton, Fisher, CentralDifference):
        with pytest.raises(LandscapeError, match="surrogate=True"):
            kind(objective, space)
        assert kind(objective, space, surrogate=True).describe()["surrogate"] is True
        assert kind(objective, Space(model, moving(model)), surrogate=True).describe()["surrogate"] is False


def test_wrong_use_is_one_line():
    model, x, y = case("mlp")
    objective, space = Objective(model, x, y), Space(model, moving(model))
    operator = Hessian(objective, space)
    for use, text in (
        (lambda: operator.product(torch.ones(operator.size)), "inside `with`"),
        (lambda: Hessian(Objective(case("mlp")[0], x, y), space), "another model"),
        (lambda: CentralDifference(objective, space, step=0.0), "positive finite step"),
        (lambda: Fisher(objective, space, kind="ture"), "nearest: 'true'"),
        (lambda: Fisher(objective, space, kind="empirical", draws=2), "kind='true'"),
        (lambda: Fisher(Objective(model, x, y, loss=lambda z, _: z.sum(dim=1)), space), "default loss"),
    ):
        with pytest.raises(LandscapeError, match=text) as caught:
            use()
        assert "\n" not in str(caught.value)
    with operator, pytest.raises(LandscapeError, match=r"\(B, 74\)"):
        operator.product(torch.ones(3))

    class Cut(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).detach()

    cut = seeded(Cut)
    for kind in (Hessian, GaussNewton):
        with (
            pytest.raises(LandscapeError, match="differentiable steps"),
            kind(Objective(cut, x.float(), y), Space(cut, moving(cut))) as broken,
        ):
            broken.product(torch.ones(broken.size))


def test_vectors_and_tensors_go_into_each_other():
    model, x, y = case("vit")
    operator = Hessian(Objective(model, x, y), Space(model, ["scale", "up.weight", "cls_token"]))
    vector = torch.arange(operator.size, dtype=torch.float64)
    named = operator.unflatten(vector)
    assert tuple(named) == operator.space.names
    assert {n: t.shape for n, t in named.items()} == {n: p.shape for n, p in operator.space.parameters.items()}
    assert torch.equal(operator.flatten(named), vector)
    assert torch.equal(operator.flatten(operator.direction(vector, "given")), vector)
    assert float(operator.flatten({"scale": torch.tensor(3.0)}).sum()) == 3.0


def test_central_differences_come_near_the_hessian_and_state_their_error():
    for name, dtype, near in (("attention", torch.float64, 1e-7), ("attention", torch.float32, 2e-3)):
        model, x, y = case(name)
        exact = dense_hessian(model, x, y, moving(model))
        model, x = model.to(dtype), x.to(dtype)
        operator = CentralDifference(Objective(model, x, y, batch_size=5), Space(model, moving(model)))
        v = torch.randn(operator.size, generator=torch.Generator().manual_seed(0), dtype=dtype)
        with operator:
            found = operator.product(v).double()
            assert operator.cost["gradients"] == 4
            operator.product(v)
            assert operator.cost["gradients"] == 6
        error = float((found - exact @ v.double()).norm() / (exact @ v.double()).norm())
        assert error < near
        assert error < 2 * operator.relative_error < 100 * near
        assert operator.describe()["relative_error"] == operator.relative_error


def test_central_differences_of_nothing_are_nothing():
    model, x, y = case("mlp")
    with CentralDifference(Objective(model, x, y), Space(model, moving(model))) as operator:
        assert not operator.product(torch.zeros(operator.size)).any()


@pytest.mark.parametrize("name", NETS)
def test_gauss_newton_equals_its_dense_product(name: str):
    """J' H_L J with dense J and H_L, for cross entropy and for a loss without a name."""
    model, x, y = case(name, n=5)
    space = Space(model, moving(model))
    jacobian = dense_jacobian(model, x, space.names)
    n, c, p = jacobian.shape

    def odd(z: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (z.sin() * torch.arange(1, c + 1)).sum(dim=1) ** 2 + target * z[:, 0] * z[:, 1]

    for loss, mean in ((None, F.cross_entropy), (odd, lambda z, t: odd(z, t).mean())):
        with torch.no_grad():
            out = model(**x) if isinstance(x, dict) else model(x)
        z = out["logits"] if isinstance(out, dict) else out
        curvature = hessian(lambda z, mean=mean: mean(z, y), z.detach()).reshape(n * c, n * c)
        expected = jacobian.reshape(n * c, p).T @ curvature @ jacobian.reshape(n * c, p)
        agree(GaussNewton(Objective(model, x, y, loss=loss), space, batch_size=4), expected)


@pytest.mark.parametrize("name", ["attention", "partly", "tied"])
def test_the_fishers_equal_loops_over_samples_and_classes(name: str):
    model, x, y = case(name, n=5)
    objective, space = Objective(model, x, y), Space(model, moving(model))
    model.requires_grad_(True)
    parameters = [dict(model.named_parameters())[n] for n in space.names]
    empirical, true = torch.zeros(2, 1, 1)
    for row, target in zip(x, y, strict=True):
        log_p = model(row[None])[0].log_softmax(dim=0)
        for label in range(CLASSES):
            found = torch.autograd.grad(log_p[label], parameters, retain_graph=True, allow_unused=True)
            flat = torch.cat([
                torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1)
                for g, p in zip(found, parameters, strict=True)
            ])  # fmt: skip
            outer = torch.outer(flat, flat) / len(y)
            true = true + log_p[label].detach().exp() * outer
            empirical = empirical + (outer if label == target else 0)
    kinds = {"true": true, "empirical": empirical}
    for kind, expected in kinds.items():
        agree(Fisher(objective, space, kind=kind, batch_size=4), expected)
    agree(GaussNewton(objective, space), true)


def test_drawn_classes_estimate_the_true_fisher_and_do_not_depend_on_the_batches():
    model, x, y = case("mlp", n=5)
    objective, space = Objective(model, x, y), Space(model, moving(model))
    true = matrix(Fisher(objective, space))
    many = matrix(Fisher(objective, space, draws=2000, seed=1))
    assert float((many - true).norm() / true.norm()) < 0.05
    once, again = (matrix(Fisher(objective, space, draws=2, seed=1, batch_size=b)) for b in (4, 5))
    torch.testing.assert_close(once, again, rtol=1e-9, atol=1e-12)
    assert float((once - true).norm() / true.norm()) > 0.1
    assert not torch.equal(once, matrix(Fisher(objective, space, draws=2, seed=2)))


def test_what_is_not_finite_stays_so():
    """Rule 6."""
    model, x, y = case("mlp")
    with torch.no_grad():
        model.up.weight[0, 0] = float("nan")
    for kind in (Hessian, GaussNewton):
        with kind(Objective(model, x, y), Space(model, moving(model))) as operator:
            assert operator.product(torch.ones(operator.size)).isnan().any()


def test_a_graph_takes_a_quarter_of_the_memory_for_all(monkeypatch):
    """The rest is for those that are kept, and for what a product holds beside its graph."""
    model, x, y = case("mlp")
    space = Space(model, [name for name, _ in model.named_parameters()])
    operator = Hessian(Objective(model, x, y, batch_size=len(y)), space)
    with operator:
        operator.product(torch.ones(operator.size, dtype=operator.dtype))
        whole = operator.graphs._size.of(len(y))
    monkeypatch.setattr("landscape.memory.PROCESSOR_BYTES", 2.5 * whole)
    few = Hessian(operator.objective, operator.space)
    with few:
        found = few.product(torch.ones(operator.size, dtype=operator.dtype))
        size, rows = few.graphs._size, few.graphs.batch_size
        assert size.of(rows) <= 2.5 * whole / 4 < size.of(rows + 1)
    with operator:
        torch.testing.assert_close(found, operator.product(torch.ones_like(found)), rtol=1e-4, atol=1e-6)
