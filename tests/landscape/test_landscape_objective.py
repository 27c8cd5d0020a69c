"""Per-sample losses, errors and distances of logits against closed forms and literal loops."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from landscape_nets import CLASSES, ConvNet, Mlp, TinyVit, data, everything, seeded
from torch import nn
from torch.nn import functional as F

from landscape import LandscapeError, Objective, Space
from landscape.gradient import gradient


class Given(nn.Module):
    """Returns its inputs as logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def given(logits: list[list[float]], targets: list[int], **options: object) -> Objective:
    return Objective(Given(), torch.tensor(logits), torch.tensor(targets), **options)


@pytest.mark.parametrize("kind", [Mlp, ConvNet, TinyVit])
def test_loss_is_that_of_torch_for_each_sample(kind):
    model, (x, y) = seeded(kind).eval(), data(kind)
    e = Objective(model, x, y, batch_size=7).evaluate()
    with torch.no_grad():
        logits = model(**x)["logits"] if kind is TinyVit else model(x)
    assert e.loss.dtype == np.float64
    np.testing.assert_allclose(e.loss, F.cross_entropy(logits, y, reduction="none").numpy(), rtol=2e-6)
    assert (e.hit == (logits.argmax(1) == y).numpy()).all()
    assert e.logits.shape == (30, CLASSES)
    assert e.mean_loss == pytest.approx(sum(e.loss.tolist()) / 30, rel=1e-15)


def test_rule_5_batch_size_does_not_matter():
    model, (x, y) = seeded(Mlp), data(Mlp, n=65)
    losses = [Objective(model, x, y, batch_size=b).evaluate().mean_loss for b in (7, 64, 65)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-7)


def test_a_pass_has_64_samples_on_a_processor_and_256_elsewhere():
    x, y = data(Mlp)
    assert Objective(seeded(Mlp), x, y).batch_size == 64
    assert Objective(seeded(Mlp).to("meta"), x, y, device="cpu").batch_size == 256
    with pytest.raises(LandscapeError, match="batch size of at least 1, found 0"):
        Objective(seeded(Mlp), x, y, batch_size=0)


def test_rule_5_the_mean_is_sum_over_n_not_a_mean_of_batch_means():
    # Batches of 2 and 1: the mean of the batch means would be 1.5 where the mean is 4/3.
    o = Objective(
        Given(), torch.tensor([1.0, 1.0, 2.0])[:, None], torch.zeros(3), batch_size=2, loss=lambda z, t: z[:, 0]
    )
    assert o.evaluate().mean_loss == 4 / 3


def test_rule_5_fingerprint_tells_data_apart():
    x, y = data(Mlp)
    prints = {
        Objective(seeded(Mlp), a, b).fingerprint for a, b in [(x, y), (x.clone(), y), (x.flip(0), y), (x, y.flip(0))]
    }
    assert len(prints) == 3
    a, b = Objective(seeded(Mlp), x, y).evaluate(), Objective(seeded(Mlp), x.flip(0), y).evaluate()
    with pytest.raises(LandscapeError, match="same data"):
        a.rise_over(b)


def test_rule_6_losses_are_reduced_in_float64():
    # One large loss and many small ones: a float32 sum loses the small ones.
    x = torch.full((2000, 1), 1e-5)
    x[0] = 1e5
    mean = Objective(Given(), x, torch.zeros(2000), loss=lambda z, t: z[:, 0]).evaluate().mean_loss
    exact = math.fsum([1e5, *[float(np.float32(1e-5))] * 1999]) / 2000
    assert mean == pytest.approx(exact, rel=1e-14)


def test_rule_6_the_log_softmax_is_in_float64():
    # log(1 + e^-20) is 2.06e-9: in float32, log-softmax returns 0.
    loss = given([[20.0, 0.0]], [0]).evaluate().loss[0]
    assert loss == pytest.approx(math.log1p(math.exp(-20)), rel=1e-6)


def test_rule_6_infinity_stays_and_nan_stays():
    e = given([[0.0, -math.inf], [math.nan, 0.0], [0.0, 0.0]], [1, 0, 0]).evaluate()
    assert e.loss[0] == math.inf
    assert np.isnan(e.loss[1])
    assert e.loss[2] == pytest.approx(math.log(2))
    assert e.nonfinite == 2
    assert list(e.hit) == [False, False, True]
    assert np.isnan(e.mean_loss)
    assert given([[0.0, -math.inf]], [1]).evaluate().mean_loss == math.inf


def test_half_precision_logits_are_raised_to_float32():
    model, (x, y) = seeded(Mlp).to(torch.bfloat16), data(Mlp)
    assert Objective(model, x.to(torch.bfloat16), y).evaluate().logits.dtype == torch.float32


def test_rule_14_standard_errors_are_those_of_the_samples_and_paired():
    a = given([[0.0, 1.0], [2.0, 0.0], [0.5, 0.0], [0.0, 3.0]], [0, 0, 1, 1]).evaluate()
    model = Given()
    shifted = Objective(
        model, torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.5, 0.0], [0.0, 3.0]]), torch.tensor([0, 0, 1, 1])
    )
    model.forward = lambda x: 1.1 * x
    b = shifted.evaluate()
    losses = a.loss.tolist()
    mean = sum(losses) / 4
    assert a.loss_se == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in losses) / 3 / 4), rel=1e-12)
    assert a.accuracy == 0.5
    assert a.accuracy_se == pytest.approx(math.sqrt(0.25 / 3), rel=1e-12)
    differences = [q - p for p, q in zip(a.loss.tolist(), b.loss.tolist(), strict=True)]
    rise = sum(differences) / 4
    paired = math.sqrt(sum((d - rise) ** 2 for d in differences) / 3 / 4)
    assert b.rise_over(a) == pytest.approx((rise, paired), rel=1e-12)
    assert paired < 0.3 * math.hypot(a.loss_se, b.loss_se)  # unpaired errors would be far larger


def test_rule_12_logit_radius_and_kl_by_literal_loops():
    model, (x, y) = seeded(Mlp), data(Mlp, n=9)
    o = Objective(model, x, y)
    centre = o.evaluate()
    with torch.no_grad():
        model.down.weight.mul_(1.3).add_(0.1)
    here = o.evaluate()
    top = bottom = kl = 0.0
    for z, z0 in zip(here.logits.tolist(), centre.logits.tolist(), strict=True):
        change = [a - b for a, b in zip(z, z0, strict=True)]
        top += sum((c - sum(change) / CLASSES) ** 2 for c in change)
        bottom += sum((c - sum(z0) / CLASSES) ** 2 for c in z0)
        p, q = ([math.exp(c) / sum(map(math.exp, v)) for c in v] for v in (z0, z))
        kl += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert here.logit_radius(centre) == pytest.approx(math.sqrt(top / bottom), rel=1e-9)
    assert here.kl_from(centre) == pytest.approx(kl / 9, rel=1e-9)
    assert centre.distance_from(centre) == (0.0, 0.0)
    assert o.evaluate().distance_from(here) == (0.0, 0.0)


def test_kl_with_a_masked_class_is_finite():
    o = given([[0.0, 1.0, -math.inf]], [0])
    centre = o.evaluate()
    o.model.forward = lambda x: x + torch.tensor([1.0, 0.0, 0.0])
    p = 1 / (1 + math.e)  # of the first class at the centre; both have a half after the shift
    expected = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert o.evaluate().kl_from(centre) == pytest.approx(expected, rel=1e-6)


def test_rule_4_dropout_is_off_and_the_mode_comes_back():
    model, (x, y) = seeded(Mlp, dropout=0.5).train(), data(Mlp)
    model.down.eval()
    before = everything(model)
    a, b = Objective(model, x, y).evaluate(), Objective(model, x, y).evaluate()
    assert (a.loss == b.loss).all()
    assert everything(model) == before


def test_rule_4_batchnorm_is_frozen():
    model, (x, y) = seeded(ConvNet).train(), data(ConvNet)
    before = everything(model)
    whole = Objective(model, x, y, batch_size=30).evaluate()
    parts = Objective(model, x, y, batch_size=4).evaluate()
    np.testing.assert_allclose(whole.loss, parts.loss, rtol=1e-5)
    assert everything(model) == before


class Noisy(Mlp):
    """Dropout that ignores eval mode, in a named submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = AlwaysDropout()


class AlwaysDropout(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5, training=True)


def test_rule_4_a_random_model_is_refused_and_the_module_named():
    model, (x, y) = seeded(Noisy), data(Mlp)
    before = everything(model)
    with pytest.raises(LandscapeError, match="first differing module: 'drop'"):
        Objective(model, x, y).check_deterministic()
    assert everything(model) == before


def test_rule_3_a_model_that_draws_leaves_the_generators_alone():
    class Draws(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
            return super().forward(x)

    model, (x, y) = seeded(Draws), data(Mlp)
    before = everything(model)
    Objective(model, x, y).check_deterministic()
    assert everything(model) == before


def test_what_a_module_caches_in_a_pass_can_be_trained_on():
    class Caching(Mlp):
        cache = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.cache is None:
                self.cache = torch.ones(5) * 2
            return super().forward(x * self.cache)

    model, (x, y) = seeded(Caching), data(Mlp)
    Objective(model, x, y).evaluate()
    F.cross_entropy(model(x.clone().requires_grad_()), y).backward()


def test_a_mean_loss_is_refused_with_the_reason():
    x, y = data(Mlp)
    for n in (30, 1):
        with pytest.raises(LandscapeError, match="reduction='none'"):
            Objective(seeded(Mlp), x[:n], y[:n], loss=nn.CrossEntropyLoss()).evaluate()
    with pytest.raises(LandscapeError, match=r"shape \(30,\), found \(30, 4\); take the mean over its other axes"):
        Objective(seeded(Mlp), x, x[:, :4], loss=nn.MSELoss(reduction="none")).evaluate()


def test_own_loss_and_soft_targets():
    x, _ = data(Mlp)
    model = seeded(Mlp).eval()
    soft = torch.softmax(x[:, :4], dim=1)
    e = Objective(model, x, soft).evaluate()
    np.testing.assert_allclose(e.loss, F.cross_entropy(model(x), soft, reduction="none").detach().numpy(), rtol=1e-5)
    assert np.isnan(e.accuracy)
    regression = Objective(model, x, x[:, :4], loss=lambda z, t: ((z - t) ** 2).sum(1)).evaluate()
    np.testing.assert_allclose(regression.loss, ((model(x) - x[:, :4]) ** 2).sum(1).detach().numpy(), rtol=1e-6)
    assert np.isnan(regression.kl_from(regression))


def test_wrong_data_is_one_line():
    x, y = data(Mlp)
    for bad, text in [
        ((x, y[:-1]), "same number of samples"),
        ((x[:0], y[:0]), "at least one"),
        ((x.numpy(), y), "found ndarray"),
        (([(x[:15], y[:15]), (x[15:], y[15:])], y), "join a loader's batches"),
    ]:
        with pytest.raises(LandscapeError, match=text) as error:
            Objective(seeded(Mlp), *bad)
        assert "\n" not in str(error.value)
    with pytest.raises(LandscapeError, match="from 0 to 3"):
        Objective(seeded(Mlp), x, y + 1).evaluate()
    with pytest.raises(LandscapeError, match="wrap it"):
        Objective(nn.LSTM(5, 4), x, y).evaluate()


def test_out_of_memory_halves_the_batch_and_warns():
    class Small(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 8:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(x)

    x, y = data(Mlp)
    o = Objective(seeded(Small), x, y, batch_size=30)
    with pytest.warns(RuntimeWarning, match="halved"):
        e = o.check_deterministic()
    assert (o.batch_size, o.halvings) == (8, 2)
    np.testing.assert_allclose(e.loss, Objective(seeded(Mlp), x, y).evaluate().loss, rtol=1e-6)


def test_out_of_memory_halves_the_batch_of_a_gradient():
    class Small(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 8:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(x)

    x, y = data(Mlp)
    model = seeded(Small)
    o = Objective(model, x, y, batch_size=30)
    with pytest.warns(RuntimeWarning, match="halved"):
        loss, found = gradient(o, Space(model, [name for name, _ in model.named_parameters()]))
    assert o.batch_size == 8
    whole = F.cross_entropy(Mlp.forward(model, x).double(), y)
    assert loss == pytest.approx(whole.item(), rel=1e-6)
    for g, name in zip(torch.autograd.grad(whole, list(model.parameters())), found, strict=True):
        torch.testing.assert_close(found[name], g, rtol=1e-4, atol=1e-7)


def test_a_differentiable_pass_takes_as_many_rows_as_its_graph_has_memory_for(monkeypatch):
    """The graph of two linear layers saves what is between them: bytes a row are known."""
    model, n = nn.Sequential(nn.Linear(3, 1000), nn.Linear(1000, CLASSES)), 12
    x, y = torch.randn(n, 3), torch.arange(n) % CLASSES
    rows: list[int] = []
    model.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    monkeypatch.setattr("landscape.memory.PROCESSOR_BYTES", 5.5 * 4 * 1000)
    o = Objective(model, x, y, batch_size=n)
    _, found = gradient(o, Space(model, ["0.weight", "1.weight"]))
    assert rows[2:] == [5, 5, 2]  # after the two that were measured
    assert o.batch_size == n
    expected = torch.autograd.grad(F.cross_entropy(model(x).double(), y), [model[0].weight])[0]
    torch.testing.assert_close(found["0.weight"], expected, rtol=1e-4, atol=1e-7)


def test_tuple_inputs():
    model, (x, y) = nn.Bilinear(5, 5, CLASSES), data(Mlp)
    e = Objective(model, (x, x.flip(0)), y, batch_size=9).evaluate()
    np.testing.assert_allclose(
        e.loss, F.cross_entropy(model(x, x.flip(0)), y, reduction="none").detach().numpy(), rtol=1e-5
    )
