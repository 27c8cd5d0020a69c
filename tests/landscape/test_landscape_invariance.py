"""Rescales that leave a function as it is: which of them leave its filter-normalised surface as it is (rule 9).

Every case is a network in float64 and the same network rescaled by hand; the loss of both is compared on one plane of
two directions of the same seeds. Some rescales move the surface: that it does is shown, not hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from landscape_nets import CLASSES, ConvNet, Mlp, seeded
from torch import Tensor, nn

from landscape import Objective, Policy, Space, grid, orthogonal_pair, plane

HEADS, WIDTH, RANK = 3, 6, 3
POLICIES = [Policy(bias_and_norm="zero"), Policy(bias_and_norm="vector"), Policy(bias_and_norm="element")]
Rescale = Callable[[nn.Module, Tensor], None]


class Attention(nn.Module):
    """A norm with gains, self-attention of three heads with a fused projection, and a low-rank change beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, CLASSES)
        self.down, self.up = nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, WIDTH, bias=False)
        with torch.no_grad():
            self.norm.weight.add_(0.3 * torch.randn(WIDTH))
            self.norm.bias.add_(0.3 * torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x)
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(z).chunk(3, dim=-1))
        mixed = ((q @ k.mT).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        return self.head((mixed + self.up(self.down(x))).mean(dim=1))


def inputs(kind: type[nn.Module]) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    shape = {Mlp: (24, 5), ConvNet: (24, 2, 6, 6), Attention: (24, 4, WIDTH)}[kind]
    return torch.randn(shape, generator=g, dtype=torch.float64), torch.randint(CLASSES, (24,), generator=g)


def relu_layer(model: Mlp, c: Tensor) -> None:
    """The layer before the ReLU by c (all of it if c is one number), the next by 1 / c column by column."""
    model.up.weight *= c.reshape(-1, 1)
    model.up.bias *= c
    model.down.weight /= c


def filters(model: ConvNet, c: Tensor) -> None:
    """Gains and biases of the BatchNorm behind the convolution by c, the columns of the next layer by 1 / c."""
    model.norm.weight *= c
    model.norm.bias *= c
    model.head.weight /= c


def head_of_attention(model: Attention, c: Tensor) -> None:
    """Queries of a head by c and its keys by 1 / c, each head with its own c."""
    per_row = c.expand(HEADS).repeat_interleave(WIDTH // HEADS)
    scale = torch.cat([per_row, 1 / per_row, torch.ones(WIDTH, dtype=c.dtype)])
    model.qkv.weight *= scale[:, None]
    model.qkv.bias *= scale


def norm_gains(model: Attention, c: Tensor) -> None:
    """Gains and biases of the norm by c, the columns of what reads them by 1 / c."""
    model.norm.weight *= c
    model.norm.bias *= c
    model.qkv.weight /= c


def gauge(model: Attention, g: Tensor) -> None:
    """A low-rank pair by an invertible matrix (a number or a diagonal stand for one): B G^-1 and G A."""
    matrix = torch.diag(g.expand(RANK)) if g.ndim < 2 else g
    model.down.weight.copy_(matrix @ model.down.weight)
    model.up.weight.copy_(model.up.weight @ torch.linalg.inv(matrix))


def difference(kind: type[nn.Module], rescale: Rescale, c: Tensor, policy: Policy = POLICIES[0]) -> float:
    """The largest difference between both surfaces; the functions themselves are checked to be equal."""
    x, y = inputs(kind)
    plain = seeded(kind).double()
    other = copy.deepcopy(plain)
    with torch.no_grad():
        rescale(other, c.double())
        torch.testing.assert_close(other.eval()(x), plain.eval()(x), rtol=1e-11, atol=1e-11)
        assert any(not torch.equal(p, q) for p, q in zip(plain.parameters(), other.parameters(), strict=True))
    found = []
    for model in (plain, other):
        space = Space(model, [name for name, _ in model.named_parameters()], policy=policy)
        axis = grid(1.0, 3)
        found.append(plane(Objective(model, x, y), space, *orthogonal_pair(space, (0, 1)), axis, axis).values())
    return float(np.abs(found[0] - found[1]).max())


scales = st.floats(0.05, 20).filter(lambda c: abs(c - 1) > 1e-3)


@settings(max_examples=8, deadline=None)
@given(scales, st.sampled_from(POLICIES))
def test_rule_9_one_c_for_a_whole_relu_layer_and_the_inverse_for_the_next(c, policy):
    assert difference(Mlp, relu_layer, torch.tensor(c), policy) < 1e-9


@settings(max_examples=8, deadline=None)
@given(st.lists(scales, min_size=HEADS, max_size=HEADS))
def test_rule_9_queries_and_keys_of_a_head_by_c_and_its_inverse(c):
    assert difference(Attention, head_of_attention, torch.tensor(c)) < 1e-9


@settings(max_examples=8, deadline=None)
@given(scales)
def test_rule_9_the_scalar_gauge_of_a_low_rank_pair(c):
    """Positive: a negative one turns the pair's weights around but not their noise, whose norms are what is kept."""
    assert difference(Attention, gauge, torch.tensor(c)) < 1e-9


@settings(max_examples=8, deadline=None)
@given(scales)
def test_rule_9_equal_norm_gains(c):
    assert difference(Attention, norm_gains, torch.tensor(c)) < 1e-9
    assert difference(ConvNet, filters, torch.tensor(c)) < 1e-9


@pytest.mark.parametrize(
    ("kind", "rescale", "c"),
    [
        (Mlp, relu_layer, torch.linspace(0.2, 4, 7)),  # the rows of the next matrix mix the units
        (Attention, gauge, torch.tensor([0.2, 1.0, 4.0])),  # and those of B the columns of a diagonal G
        (Attention, gauge, torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0], [0.5, 0.0, 2.0]])),
        (Attention, gauge, torch.tensor(-1.0)),
        (Attention, norm_gains, torch.linspace(0.2, 4, WIDTH)),
        (ConvNet, filters, torch.tensor([0.2, 1.0, 4.0])),
    ],
    ids=[
        "a c per ReLU row",
        "diagonal gauge",
        "GL(r) gauge",
        "negative scalar gauge",
        "unequal norm gains",
        "unequal gains of BatchNorm",
    ],
)
def test_rule_9_what_moves_the_surface_though_not_the_function(kind, rescale, c):
    assert difference(kind, rescale, c) > 1e-3
