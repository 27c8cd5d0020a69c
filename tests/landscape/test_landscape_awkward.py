"""Models and surroundings that could mislead a landscape without a word: what they do to it, or what says that."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from curvature_oracles import Explicit, symmetric
from landscape_nets import CLASSES, ConvNet, Mlp, data, seeded
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from landscape import LandscapeError, Objective, Policy, Space, draw, from_tensors, line, orthogonal_pair, plane
from landscape.curvature import (
    CentralDifference,
    Fisher,
    GaussNewton,
    Hessian,
    block_traces,
    hutchinson,
    spectral_density,
    xtrace,
)
from landscape.gradient import gradient
from landscape.pilot import samples_for
from landscape.sharpness import get

ALPHAS = [-1.0, -0.5, 0.0, 0.5, 1.0]


def of(model: nn.Module, n: int = 24, inputs: int = 5, **settings) -> tuple[Objective, Space]:
    """An objective and a space of all weights, on data of this many inputs."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, inputs, generator=g).to(next(model.parameters()).dtype)
    objective = Objective(model, x, torch.randint(CLASSES, (n,), generator=g), **settings)
    return objective, Space(model, [name for name, _ in model.named_parameters()], kind="full")


def bend(objective: Objective, space: Space, h: float = 1e-3) -> tuple[float, float]:
    """d'Hd by the Hessian, and by second differences of the loss alone."""
    direction = draw(space, 0)
    with Hessian(objective, space) as hessian:
        d = hessian.flatten(direction)
        product = float(d @ hessian.product(d))
    low, centre, high = line(objective, space, direction, [-h, 0.0, h]).values()
    return product, (low - 2 * centre + high) / h**2


def test_a_surrounding_autocast_does_not_hold_the_weights_still():
    objective, space = of(seeded(Mlp))
    plain = line(objective, space, draw(space, 0), ALPHAS).values()
    worst = get("worst_case")(objective, space).value
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = line(objective, space, draw(space, 0), ALPHAS).values()
        assert get("worst_case")(objective, space).value == pytest.approx(worst, rel=0.5)
        assert torch.is_autocast_cache_enabled()
    assert np.abs(inside - plain).max() < 0.05 * np.ptp(plain)


def test_cached_parametrisations_do_not_hold_the_weights_still():
    model = seeded(Mlp)
    parametrizations.weight_norm(model.up)
    objective, space = of(model)
    plain = line(objective, space, draw(space, 0), ALPHAS).values()
    with parametrize.cached():
        model(objective.inputs["0"])
        assert line(objective, space, draw(space, 0), ALPHAS).values().tolist() == plain.tolist()
        assert parametrize._cache_enabled == 1


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("normalise", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_rule_17_the_hessian_of_a_weight_normalised_network_is_that_of_its_loss(normalise):
    model = seeded(Mlp).double()
    normalise(model.up)
    product, differences = bend(*of(model))
    assert product == pytest.approx(differences, rel=1e-4)


def test_two_parameters_on_one_memory_have_no_gradient_but_a_surface():
    model = seeded(Mlp)
    model.add_module("twin", nn.Linear(5, 7))
    model.twin.weight = nn.Parameter(model.up.weight.data)
    objective, space = of(model)
    assert np.ptp(line(objective, space, draw(space, 0), ALPHAS).values()) > 0
    for ask in (lambda: gradient(objective, space), lambda: hutchinson(Hessian(objective, space))):
        with pytest.raises(LandscapeError, match=r"'up.weight' and 'twin.weight' are two parameters on one memory"):
            ask()


def test_views_that_overlap_cannot_move_and_views_side_by_side_can():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, CLASSES))
    model[1].weight = nn.Parameter(model[0].weight.data.T)
    with pytest.raises(LandscapeError, match="overlap in memory"):
        of(model, inputs=4)
    flat = torch.randn(32)
    model[0].weight, model[1].weight = nn.Parameter(flat[:16].view(4, 4)), nn.Parameter(flat[16:].view(4, 4))
    assert of(model, inputs=4)[1].k == 32


def test_rule_4_measures_take_the_statistics_anew_where_the_lines_do():
    model = seeded(ConvNet)
    objective = Objective(model, *data(ConvNet))
    names = [name for name, _ in model.named_parameters()]
    space = Space(model, names, kind="full", batch_norm="recalibrate")
    ends = line(objective, space, draw(space, 0), [-0.5, 0.0, 0.5]).to_frame()
    average = get("average")(objective, space, rho=0.5, directions=1)
    assert average.value == pytest.approx((ends.rise_nats[0] + ends.rise_nats[2]) / 2, rel=1e-12)
    assert average.details["baseline"]["loss_nats"] == ends.loss_nats[1]
    pilot = samples_for(objective, space, [draw(space, 0)], extent=0.5, se=0.01)
    assert pilot.value == math.ceil(ends.rise_se_nats.max() ** 2 * objective.n / 0.01**2)
    with pytest.raises(LandscapeError, match="fixed running statistics"):
        gradient(objective, space)


def test_statistics_that_the_policy_holds_cannot_be_perturbed():
    model = seeded(ConvNet)
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(LandscapeError, match="needs bias_and_norm='vector' or 'element'"):
        Space(model, names, batch_norm="perturb")
    assert "norm.running_var" in Space(model, names, batch_norm="perturb", policy=Policy(bias_and_norm="element")).names


def test_rule_6_half_precision_gradients_are_summed_in_float32():
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Linear(5, CLASSES, bias=False, dtype=torch.bfloat16)

        def forward(self, x):
            return self.down(x.to(torch.bfloat16))

    model = seeded(Half)
    g = torch.Generator().manual_seed(2)
    x, y = torch.rand(2048, 5, generator=g), torch.zeros(2048, dtype=torch.long)
    found = [
        gradient(o, Space(model, ["down.weight"]))[1]["down.weight"]
        for o in (Objective(model, x, y, batch_size=size) for size in (2, 2048))
    ]
    assert found[0].dtype == torch.float32
    assert torch.allclose(*found, rtol=0.02)


class Noisy(nn.Module):
    """Drops out in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(5, CLASSES)

    def forward(self, x):
        return nn.functional.dropout(self.down(x), training=True)


@pytest.mark.parametrize(
    "ask",
    [
        lambda objective, space: hutchinson(GaussNewton(objective, space)),
        lambda objective, space: hutchinson(Fisher(objective, space)),
        lambda objective, space: hutchinson(CentralDifference(objective, space)),
        lambda objective, space: samples_for(objective, space, [draw(space, 0)], extent=1.0, se=0.1),
    ],
)
def test_rule_4_a_model_that_is_random_in_eval_mode_has_no_curvature_and_no_pilot(ask):
    with pytest.raises(LandscapeError, match="expected one loss for one input"):
        ask(*of(seeded(Noisy)))


class InPlace(nn.Module):
    """Centres its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.down(x.sub_(1.0).relu_())


def test_a_model_that_writes_into_its_input_leaves_the_data():
    objective, space = of(seeded(InPlace))
    before = objective.inputs["0"].clone()
    values = line(objective, space, draw(space, 0), [0.0, 1.0, 0.0]).values()
    assert torch.equal(objective.inputs["0"], before)
    assert values[0] == values[2]


class Squeezed(nn.Module):
    """Fails for a single row: its only axis goes."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.down(x).squeeze()


def test_a_model_that_takes_no_single_row_has_gradients():
    objective, space = of(seeded(Squeezed))
    product, differences = bend(objective, space, 0.05)
    assert product == pytest.approx(differences, rel=0.02)


class Graph(nn.Module):
    """Mixes the inputs by a sparse matrix."""

    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        self.down = nn.Linear(5, CLASSES)
        self.register_buffer("adjacency", (torch.eye(5) + torch.eye(5).roll(1, 0)).to_sparse(layout=layout))

    def forward(self, x):
        return self.down((self.adjacency @ x.T).T)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_buffers_are_no_hindrance(layout):
    objective, space = of(seeded(Graph, layout=layout))
    product, differences = bend(objective, space, 0.05)
    assert product == pytest.approx(differences, rel=0.02)
    assert hutchinson(GaussNewton(objective, space)).value > 0


class Words(nn.Module):
    """An embedding, with dense or sparse gradients."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.words, self.down = nn.Embedding(9, 5, sparse=sparse), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.down(torch.tanh(self.words(x)).mean(dim=1))


def test_sparse_gradients_are_those_of_dense_ones():
    g = torch.Generator().manual_seed(3)
    x, y = torch.randint(9, (12, 3), generator=g), torch.randint(CLASSES, (12,), generator=g)
    traces = []
    for sparse in (False, True):
        model = seeded(Words, sparse=sparse)
        space = Space(model, [name for name, _ in model.named_parameters()])
        traces.append(hutchinson(CentralDifference(Objective(model, x, y), space)).value)
    assert traces[1] == pytest.approx(traces[0], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_class_indices_of_any_integer_type(dtype):
    model = seeded(Mlp)
    x, y = data(Mlp)
    space = Space(model, ["up.weight"])
    (loss, g), (same, h) = (gradient(Objective(model, x, t), space) for t in (y, y.to(dtype)))
    assert same == loss
    assert torch.equal(g["up.weight"], h["up.weight"])
    with pytest.raises(LandscapeError, match="type bool"):
        gradient(Objective(model, x, y > 1), space)


def test_the_fisher_matrix_of_a_single_output():
    model = nn.Sequential(nn.Linear(5, 1, bias=False), nn.Flatten(0))
    x, y = torch.randn(20, 5), torch.randn(20)
    objective = Objective(model, x, y, loss=lambda z, t: (z - t).square())
    with Fisher(objective, Space(model, ["0.weight"]), kind="empirical") as fisher:
        found = fisher.products(torch.eye(5))
    slopes = 2 * (model(x).detach() - y)[:, None] * x
    assert torch.allclose(found, slopes.T @ slopes / 20, atol=1e-5)


def test_noise_and_probes_do_not_depend_on_the_default_type_and_device():
    objective, space = of(seeded(Mlp))

    def values() -> list[float]:
        return [*line(objective, space, draw(space, 0), ALPHAS).values(), xtrace(Hessian(objective, space)).value]

    before = values()
    torch.set_default_dtype(torch.float64)
    try:
        assert values() == before
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert values() == before


def test_the_density_of_a_multiple_of_the_identity_has_area_one():
    found = spectral_density(Explicit(symmetric(np.full(30, 0.3))), probes=4)
    assert np.trapezoid(found.density, found.eigenvalues) == pytest.approx(1, abs=1e-3)
    assert all(a < b for a, b in pairwise(found.eigenvalues))


def test_keskars_measure_has_no_value_where_one_plus_the_loss_is_not_positive():
    model = seeded(Mlp)
    objective = Objective(model, *data(Mlp), loss=lambda z, t: nn.functional.cross_entropy(z, t, reduction="none") - 3)
    found = get("keskar")(objective, Space(model, ["up.weight"]), steps=4, restarts=1)
    assert math.isnan(found.value)
    assert found.status == "failed"
    assert found.details["rise_nats"] > 0


def test_rule_12_a_point_on_an_axis_has_the_radius_that_its_line_has():
    objective, space = of(seeded(Mlp))
    dx, dy = orthogonal_pair(space, (0, 1))
    x, y = (from_tensors(space, {n: d.tensors[n]}, n) for n, d in (("up.weight", dx), ("down.weight", dy)))
    alone = line(objective, space, x, [0.0, 0.5]).to_frame().effective_radius[1]
    frame = plane(objective, space, x, y, [0.0, 0.5], [0.0, 0.5]).to_frame()
    assert frame[(frame.x == 0.5) & (frame.y == 0)].effective_radius.item() == pytest.approx(alone, rel=1e-12)


class Masked(Mlp):
    """A class that is never predicted."""

    def forward(self, x):
        return super().forward(x).index_fill(1, torch.tensor([2]), -torch.inf)


def test_a_masked_class_does_not_move_the_logits():
    model = seeded(Masked)
    x, y = data(Mlp)
    space = Space(model, ["up.weight"])
    found = line(Objective(model, x, y % 2), space, draw(space, 0), [0.0, 1.0]).to_frame()
    assert found.logit_radius[0] == 0
    changes, centred = [], []
    with torch.no_grad():
        for alpha in (0.0, 1.0):
            with space:
                space.move(draw(space, 0), alpha)
                kept = model(x)[:, [0, 1, 3]].double()
            changes.append(kept - kept.mean(dim=1, keepdim=True))
    centred = changes[0].norm()
    assert found.logit_radius[1] == pytest.approx(float((changes[1] - changes[0]).norm() / centred), rel=1e-5)


class Lazy(nn.Module):
    """Fills a buffer when it is first called."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(5, CLASSES)
        self.register_buffer("table", None)

    def forward(self, x):
        if self.table is None:
            self.table = torch.ones(CLASSES)
        return self.down(x) * self.table


def test_rule_3_a_buffer_that_was_none_is_none_again():
    model = seeded(Lazy)
    objective, space = of(model)
    line(objective, space, draw(space, 0), ALPHAS)
    assert model.table is None


def test_blocks_without_curvature_have_no_share():
    model = nn.Linear(5, 1)
    objective = Objective(model, torch.randn(20, 5), torch.randn(20), loss=lambda z, t: z[:, 0] * t)
    frame = block_traces(Hessian(objective, Space(model, ["weight"]))).to_frame()
    assert frame.share.isna().all()
    assert (frame.trace_nats == 0).all()
