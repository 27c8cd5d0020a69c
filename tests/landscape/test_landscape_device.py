"""Float32 on each device there is, against float64 on the processor."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from curvature_oracles import case

from landscape import Objective, Space, line, orthogonal_pair, plane
from landscape.curvature import GaussNewton, Hessian

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
AXIS = [-0.5, 0.0, 0.5]


@pytest.fixture(params=DEVICES)
def both(request) -> list[tuple[Objective, Space]]:
    """The same weights and samples in float64 on the processor, and in float32 on the device."""
    exact, x, y = case("vit")
    single = copy.deepcopy(exact).float().to(request.param)
    objectives = Objective(exact, x, y), Objective(single, {name: v.float() for name, v in x.items()}, y)
    return [(o, Space(o.model, [name for name, _ in o.model.named_parameters()])) for o in objectives]


def test_a_surface_is_that_of_float64(both):
    exact, single = (plane(o, s, *orthogonal_pair(s, (0, 1)), AXIS, AXIS) for o, s in both)
    for column in ("loss_nats", "loss_se_nats", "rise_se_nats", "kl_nats"):
        expected = exact.values(column)
        np.testing.assert_allclose(single.values(column), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert np.array_equal(exact.values("accuracy"), single.values("accuracy"))


def test_a_device_repeats_itself_and_says_where_it_measured(both):
    _, (objective, space) = both
    dx, _ = orthogonal_pair(space, (0, 1))
    first, again = (line(objective, space, dx, AXIS, precision="auto") for _ in range(2))
    assert first.rows == again.rows
    assert first.provenance["device"].startswith(space.parameters[space.names[0]].device.type)


@pytest.mark.parametrize("operator_of", [Hessian, GaussNewton])
def test_products_are_those_of_float64(both, operator_of):
    found = []
    for objective, space in both:
        with operator_of(objective, space) as operator:
            v = torch.randn(operator.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            found.append(operator.product(v).cpu().double())
    expected, single = found
    assert (single - expected).norm() < 1e-4 * expected.norm()
