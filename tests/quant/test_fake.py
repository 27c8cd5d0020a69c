"""The straight-through gradient against complex steps, and the layer on it."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from quant.errors import QuantError
from quant.fake import QuantLinear, bake, fake_quantize
from quant.quantizers import get, names, widths
from quant.quantizers._affine import Standardised

EVERY = [(name, bits) for name in names() for bits in widths(name) if get(name, bits).trains]
STANDARDISED = [(name, bits) for name, bits in EVERY if isinstance(get(name, bits), Standardised)]


def gradient_by_complex_steps(w: np.ndarray, g: np.ndarray, bits: int, name: str) -> np.ndarray:
    """dL/dW of L = sum g_i ((q_i + w_i - const w_i) s + m) (PAPER 1.3), with nothing that cancels."""
    book = get(name, bits).codebook()

    def statistics(x: np.ndarray):
        m = x.mean()
        s = np.sqrt(((x - m) ** 2).sum() / (x.size - 1))
        return m, s, (x - m) / (s + 1e-5)

    _, _, fixed = statistics(w)
    q = book.values[(fixed[:, None] > book.boundaries).sum(1)]
    out = np.empty_like(w)
    for j in range(w.size):
        x = w.astype(complex)
        x[j] += 1e-30j
        m, s, z = statistics(x)
        out[j] = (g * ((q + z - fixed) * s + m)).sum().imag / 1e-30
    return out


@pytest.mark.parametrize(("name", "bits"), STANDARDISED)
@pytest.mark.parametrize("std", [1e-3, 0.05, 3.0])
def test_rule_23_the_gradient_is_the_papers(bits, name, std):
    rng = np.random.default_rng(bits)
    w, g = rng.standard_normal(60) * std + 0.3 * std, rng.standard_normal(60)
    latent = torch.from_numpy(w).reshape(6, 10).requires_grad_()
    fake_quantize(latent, get(name, bits)).backward(torch.from_numpy(g).reshape(6, 10))
    expected = gradient_by_complex_steps(w, g, bits, name)
    np.testing.assert_allclose(latent.grad.numpy().ravel(), expected, rtol=0, atol=1e-10)


def naive(w: torch.Tensor, name: str, bits: int) -> torch.Tensor:
    """The surrogate of one group, literally: the rounding is detached and nothing else, autograd does the rest."""
    q = get(name, bits)
    grid = q.fit(w)
    codes = grid.codes(w).long()
    if name in {"kmeans", "kmedians"}:
        runs = [w[codes == k] for k in codes]
        c = torch.stack([r.mean() if name == "kmeans" else r.quantile(0.5) for r in runs])
        return c + (w - c) - (w - c).detach()
    levels = torch.from_numpy(np.array(q.codebook().values))[codes]
    m = torch.zeros((), dtype=w.dtype)
    if name == "nf":
        s = w.abs().max()
    elif name in {"bwn", "absmean"} or (name, bits) == ("dorefa", 1):
        s = w.abs().mean()
    elif name == "twn":
        s = w.abs()[w.abs() > 0.7 * w.abs().mean()].mean()
    elif name in {"ternary", "lsq"}:
        s = (w * levels).sum() / levels.square().sum()
    elif name == "uniform_mse":
        m = w.mean()
        s = ((w - m) * levels).sum() / levels.square().sum()
    elif name == "uniform_minmax":
        m, s = w.min(), w.max() - w.min()
    elif name == "ecu":
        m, s = w.mean(), w.std() * (grid.table[1, 0] / w.std().detach())
    elif name == "dorefa":
        s = w.abs().max()
        z = w.tanh() / s.tanh()
        return s * (levels + z - z.detach())
    else:
        m, s = w.mean(), w.std()
        z = (w - m) / (s + 1e-5)
        return (levels + z - z.detach()) * s + m
    z = (w - m) / s
    return (levels + z - z.detach()) * s + m


@pytest.mark.parametrize(("name", "bits"), EVERY)
@pytest.mark.parametrize("scope", ["", "/row", "/group14"])
def test_rule_23_the_gradient_is_that_of_the_literal_surrogate(name, bits, scope):
    rng = np.random.default_rng(bits)
    w = torch.from_numpy(rng.standard_normal((4, 10)) * 0.7 + 0.1).requires_grad_()
    g = torch.from_numpy(rng.standard_normal((4, 10)))
    out = fake_quantize(w, get(name + scope, bits))
    (grad,) = torch.autograd.grad(out, w, g)
    groups = {"": [w.flatten()], "/row": list(w), "/group14": list(w.flatten().split(14))}[scope]
    expected = torch.cat([naive(group, name, bits) for group in groups]).view(4, 10)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-14)
    (literal,) = torch.autograd.grad(expected, w, g)
    torch.testing.assert_close(grad, literal, rtol=0, atol=1e-10)


class TestLearnedStep:
    @staticmethod
    def literal(w: torch.Tensor, s: torch.Tensor, bits: int) -> torch.Tensor:
        """Esser et al. 2020, appendix B: gradscale, roundpass, clip."""
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        scaled = s * (1 / (w.numel() * high) ** 0.5)
        s = scaled + (s - scaled).detach()
        v = (w / s).clamp(low, high)
        return (v + (v.round() - v).detach()) * s

    @pytest.mark.parametrize("bits", range(2, 9))
    @pytest.mark.parametrize("sign", [1, -1])
    def test_its_gradients_are_the_published_ones(self, bits, sign):
        rng = np.random.default_rng(bits)
        w, g = (torch.from_numpy(rng.standard_normal((5, 8))) for _ in range(2))
        steps = torch.tensor([0.5, 0.9, 0.2, 1.3, 0.7], dtype=torch.float64) * sign
        both = [w.requires_grad_(), steps.requires_grad_()]
        out = fake_quantize(w, get("lsq/row", bits), steps)
        expected = torch.stack([self.literal(x, s, bits) for x, s in zip(w, steps.abs(), strict=True)])
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)  # the step itself is a float32
        found, literal = (torch.autograd.grad(v, both, g) for v in (out, expected))
        for a, b in zip(found, literal, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-6)

    def test_the_layer_has_it_as_a_parameter(self):
        layer = QuantLinear(8, 5, bits=3, quantizer="lsq/row")
        assert list(layer.state_dict()) == ["weight", "step"]
        mean = layer.weight.detach().abs().mean(dim=1)
        torch.testing.assert_close(layer.step.detach(), 2 * mean / 3**0.5)
        with torch.no_grad():
            layer.weight.mul_(10)
        layer.reset_step()
        torch.testing.assert_close(layer.step.detach(), 20 * mean / 3**0.5)
        for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
            assert torch.equal(other.step, layer.step)
        assert torch.equal(layer.grid().statistics, layer.step)
        assert torch.equal(layer.deployed().weight, layer.grid().values(layer.grid().codes(layer.weight)))

    @pytest.mark.parametrize("quantizer", ["lsq", "lsq/group3/f16"])
    def test_what_is_used_is_what_the_grid_stores(self, quantizer):
        layer, x = QuantLinear(8, 5, bits=4, quantizer=quantizer), torch.randn(3, 8)
        with torch.no_grad():
            layer.step[0] *= -1.7
        stored = get(quantizer, 4).grid(layer.grid().statistics, (5, 8))
        assert torch.equal(layer(x), x @ stored.values(stored.codes(layer.weight)).T)

    def test_it_learns_weight_and_step(self):
        torch.manual_seed(0)
        layer, x = QuantLinear(16, 1, bits=2, quantizer="lsq"), torch.randn(256, 16)
        y = x @ (0.3 * torch.tensor([1.0, -2.0, 0.0, 1.0] * 4))
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.03)
        for _ in range(150):
            loss = (layer(x)[:, 0] - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss < 0.02 * y.square().mean()
        assert layer.step.item() == pytest.approx(0.3, rel=0.05)

    def test_only_where_there_is_one(self):
        with pytest.raises(QuantError, match="expected no step: nf has none to learn"):
            fake_quantize(torch.randn(3, 3), get("nf", 4), torch.ones(1))
        with pytest.raises(QuantError, match="finite weights and steps"):
            fake_quantize(torch.randn(3, 3), get("lsq", 4), torch.full((1,), torch.nan))


def test_what_does_not_train_says_so():
    w = torch.randn(8, 8, requires_grad=True)
    with pytest.raises(QuantError, match="pq does not train: quantise with it after training"):
        fake_quantize(w, get("pq", 4))
    with pytest.raises(QuantError, match="pq does not train"):
        QuantLinear(8, 8, bits=4, quantizer="pq")
    grid = get("pq", 4).fit(w)
    assert torch.equal(fake_quantize(w.detach(), get("pq", 4)), grid.values(grid.codes(w)))


def test_rule_23_the_oracle_agrees_with_central_differences():
    rng = np.random.default_rng(0)
    w, g, h = rng.standard_normal(20), rng.standard_normal(20), 1e-6
    z0 = (w - w.mean()) / (w.std(ddof=1) + 1e-5)
    q = np.where(z0 > 0, 1, -1) * 0.6744897501960817

    def loss(x):
        s = x.std(ddof=1)
        return (g * ((q + (x - x.mean()) / (s + 1e-5) - z0) * s + x.mean())).sum()

    slow = [(loss(w + h * e) - loss(w - h * e)) / (2 * h) for e in np.eye(20)]
    np.testing.assert_allclose(gradient_by_complex_steps(w, g, 1, "gaussian_l1"), slow, atol=1e-8)


@pytest.mark.parametrize(("name", "bits"), EVERY)
@pytest.mark.parametrize("suffix", ["", "/f16", "/group37/f16"])
def test_rule_26_the_forward_pass_is_bit_equal_to_what_is_stored(bits, name, suffix):
    for dtype in (torch.float32, torch.float64):
        w = torch.from_numpy(np.random.default_rng(1).standard_normal((17, 9))).to(dtype) * 0.01
        w[3, 3] = w.mean()
        q = get(name + suffix, bits)
        grid = q.fit(w)
        out = fake_quantize(w.requires_grad_(), q)
        assert torch.equal(out, grid.values(grid.codes(w)))
        if dtype == torch.float32:
            assert torch.equal(out, q.grid(grid.statistics, (17, 9)).values(grid.codes(w)))


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_rule_22_a_tie_in_training_goes_to_the_lower_value(bits):
    out = fake_quantize(torch.tensor([-1.0, 0.0, 1.0]), get("gaussian_l1", bits))
    assert out[1] == np.float32(get("gaussian_l1", bits).codebook().values[2 ** (bits - 1) - 1])


def test_gradients_of_matrices_without_a_scale():
    single = torch.tensor([[2.0]], requires_grad=True)
    fake_quantize(single, get("gaussian_l1", 1)).backward(torch.tensor([[5.0]]))
    assert single.grad.item() == 5
    constant = torch.full((2, 2), 0.1, requires_grad=True)
    fake_quantize(constant, get("gaussian_l1", 1)).backward(torch.tensor([[1.0, 2], [3, 6]]))
    torch.testing.assert_close(constant.grad, torch.full((2, 2), 3.0))


def test_a_second_derivative_is_refused():
    w = torch.randn(4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(fake_quantize(w, get("gaussian_l1", 2)).square().sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_pass_in_inference_mode_spoils_no_later_training():
    layer = QuantLinear(8, 4, bits=7, quantizer="gaussian_l2", dtype=torch.float64)
    with torch.inference_mode():
        layer(torch.ones(2, 8, dtype=torch.float64))
    layer(torch.ones(2, 8, dtype=torch.float64)).sum().backward()
    assert layer.weight.grad is not None


def test_reduced_precision_keeps_its_dtype_and_computes_in_float32():
    w = torch.randn(6, 6, dtype=torch.bfloat16, requires_grad=True)
    out = fake_quantize(w, get("gaussian_l1", 4))
    out.sum().backward()
    assert out.dtype == w.grad.dtype == torch.bfloat16
    assert torch.equal(out, fake_quantize(w.float(), get("gaussian_l1", 4)).bfloat16())


def test_weights_that_are_not_contiguous():
    w = torch.randn(6, 4)
    assert torch.equal(
        fake_quantize(w.t(), get("gaussian_l1", 3)), fake_quantize(w.t().contiguous(), get("gaussian_l1", 3))
    )


class TestQuantLinear:
    def test_latent_weight_keeps_its_name(self):
        layer = QuantLinear(5, 3, True, bits=2)
        assert list(layer.state_dict()) == ["weight", "bias"]
        assert not hasattr(QuantLinear(5, 3, bits=2).bias, "data")
        assert "bits=2, quantizer=gaussian_l1" in repr(layer)

    def test_forward_and_deployed_are_bit_equal(self):
        x = torch.randn(4, 12)
        for bits in range(1, 9):
            layer = QuantLinear(12, 7, True, bits=bits).eval()
            plain = layer.deployed()
            assert type(plain) is nn.Linear
            assert not plain.training
            assert torch.equal(plain(x), layer(x))
            assert plain.weight.unique().numel() <= 2**bits
            assert plain.weight.data_ptr() != layer.weight.data_ptr()
            assert plain.bias.data_ptr() != layer.bias.data_ptr()
            assert torch.equal(layer.grid().values(layer.grid().codes(layer.weight)), plain.weight)

    def test_pickles_and_copies(self):
        layer, x = QuantLinear(6, 2, bits=3, quantizer="released"), torch.randn(3, 6)
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), torch.load(file, weights_only=False)):
            assert torch.equal(other(x), layer(x))

    def test_follows_its_latent_weight_in_eval_mode(self):
        layer, x = QuantLinear(6, 2, bits=1).eval(), torch.randn(3, 6)
        before = layer(x)
        layer.weight.data.mul_(2)  # no version counter sees this
        assert not torch.equal(layer(x), before)

    def test_keeps_its_values_until_something_changes(self, monkeypatch):
        fits = []
        fit = type(get("gaussian_l1", 2)).fit
        monkeypatch.setattr(type(get("gaussian_l1", 2)), "fit", lambda q, w: fits.append(1) or fit(q, w))
        layer, x = QuantLinear(6, 4, bits=2).eval().requires_grad_(False), torch.randn(3, 6)

        def passes(n):
            fits.clear()
            for _ in range(n):
                out = layer(x)
            found = len(fits)
            assert torch.equal(out, nn.functional.linear(x, layer.deployed().weight))
            return found

        assert passes(3) == 1
        assert passes(2) == 0
        with torch.no_grad():
            layer.weight.add_(0.1)
        assert passes(2) == 1
        layer.weight.data.mul_(2)  # no version counter sees this
        assert passes(2) == 1
        layer._kept[0][0].entries = None  # as on a device where looking at entries would wait for it
        with torch.no_grad():
            layer.weight.add_(0.1)
        assert passes(2) == 1
        layer.load_state_dict({"weight": torch.randn(4, 6)})
        assert passes(2) == 1
        layer.weight.data = torch.randn(4, 6)
        assert passes(2) == 1
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        assert passes(2) == 1
        layer.double()  # the same parameter, at the same version
        x = x.double()
        assert passes(2) == 1
        layer.train()
        assert passes(2) == 2

    def test_in_eval_mode_gradients_reach_the_latent_weight_and_the_input(self):
        layer, x = QuantLinear(6, 4, bits=2).eval(), torch.randn(3, 6, requires_grad=True)
        with torch.inference_mode():
            layer(x)
        with torch.no_grad():
            layer(x)
        layer(x).sum().backward()
        assert layer.weight.grad is not None
        layer.requires_grad_(False)
        (grad,) = torch.autograd.grad(layer(x).sum(), x)
        assert torch.equal(grad, layer.deployed().weight.sum(0).expand(3, 6))

    def test_copies_carry_no_kept_values(self):
        layer = QuantLinear(6, 4, bits=2).eval().requires_grad_(False)
        layer(torch.randn(3, 6))
        assert layer._kept is not None
        for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
            assert other._kept is None
        assert list(layer.state_dict()) == ["weight"]

    def test_a_moved_latent_weight_is_quantised_again(self):
        from landscape.directions import draw
        from landscape.space import Space

        model, x = nn.Sequential(QuantLinear(6, 4, bits=2)).eval().requires_grad_(False), torch.randn(3, 6)
        space = Space(model, ["0.weight"], weights="requantised")
        direction = draw(space, 0)
        before = model(x)
        with space:
            for step in (0.5, 1.0):
                space.move(direction, step)
                assert torch.equal(model(x), nn.functional.linear(x, model[0].deployed().weight))
                assert not torch.equal(model(x), before)
        assert torch.equal(model(x), before)

    def test_learns(self):
        generator = torch.Generator().manual_seed(0)
        layer = QuantLinear(16, 1, bits=1)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(1, 16, generator=generator))
        x = torch.randn(256, 16, generator=generator)
        y = x @ torch.tensor([1.0, -1.0] * 8)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
        for _ in range(200):
            loss = (layer(x)[:, 0] - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss < 1e-3  # the target is itself of one bit: signs and scale must both be found

    def test_wrong_settings(self):
        with pytest.raises(QuantError, match="bits from 1 to 8"):
            QuantLinear(3, 3, bits=32)
        with pytest.raises(QuantError, match="nearest: released"):
            QuantLinear(3, 3, bits=1, quantizer="release")


def test_bake_copies_the_model_with_plain_layers():
    shared_layer = QuantLinear(4, 4, bits=2)
    model = nn.Sequential(
        nn.ModuleDict({"a": shared_layer})["a"], nn.Sequential(nn.ReLU(), shared_layer), nn.Linear(4, 2)
    )
    baked, x = bake(model), torch.randn(3, 4)
    assert list(baked.state_dict()) == list(model.state_dict())
    assert not any(isinstance(m, QuantLinear) for m in baked.modules())
    assert isinstance(model[0], QuantLinear)
    assert baked[0] is baked[1][1]
    assert torch.equal(baked(x), model(x))
    assert type(bake(shared_layer)) is nn.Linear
