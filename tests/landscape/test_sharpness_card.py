"""What every measure must do, the card of all of them, and average sharpness block by block."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from landscape_nets import ConvNet, Mlp, Tied, TinyVit, data, everything, seeded
from sharpness_bowls import bowl
from torch import nn

from landscape import LandscapeError, Objective, Policy, Space, draw
from landscape.connectivity import interpolate
from landscape.curvature import Hessian, along, top_eigenvalues
from landscape.estimate import MEANING, Estimate
from landscape.sharpness import average, get, names
from landscape.sharpness.card import measure_all
from landscape.sharpness.per_layer import block_of, per_layer

CHEAP = {
    "adaptive": {"steps": 3, "restarts": 2},
    "average": {"directions": 2},
    "basin_radius": {"rays": 2, "tolerance": 0.2},
    "keskar": {"steps": 3},
    "noise_radius": {"directions": 2, "tolerance": 0.2},
    "sam": {"m": 11},
    "worst_case": {"steps": 3, "directions": 2},
}


def setting(kind: type[nn.Module] = Mlp, **options: object) -> tuple[Objective, Space]:
    model = seeded(kind).train()
    return Objective(model, *data(kind)), Space(model, [n for n, _ in model.named_parameters()], **options)


def test_names_are_the_files_and_need_no_torch():
    assert names() == sorted(CHEAP)
    code = "import sys; from landscape.sharpness import names; names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(LandscapeError, match="found 'worst'; nearest: 'worst_case'"):
        get("worst")


def test_a_loss_of_ones_own_is_not_said_to_be_in_nats():
    objective, space = setting()
    own = Objective(space.model, *data(Mlp), loss=lambda logits, targets: logits.square().sum(dim=1))
    other = {name: w + 0.1 for name, w in space.model.state_dict().items()}
    for chosen, unit in ((objective, "nats"), (own, "")):
        found = [
            get("average")(chosen, space, directions=2),
            along(Hessian(chosen, space), 2),
            *top_eigenvalues(Hessian(chosen, space), 1).estimates(),
            interpolate(chosen, space, other, 3).barriers["data"],
        ]
        assert [e.unit for e in found] == [unit] * 4
        assert all(("nats" in repr(e)) == bool(unit) for e in found)


@pytest.mark.parametrize("kind", [Mlp, ConvNet, TinyVit, Tied])
@pytest.mark.parametrize("name", sorted(CHEAP))
def test_rule_3_and_28_every_measure_restores_all_and_says_what_it_did(name, kind):
    objective, space = setting(kind)
    before = everything(space.model)
    found = get(name)(objective, space, seed=1, **CHEAP[name])
    assert everything(space.model) == before
    assert isinstance(found, Estimate)
    assert found.status in MEANING
    assert found.status not in ("failed", "diverged")
    assert math.isfinite(found.value)
    assert found.error_over in ("samples", "directions", "groups", "rays")
    assert set(found.cost) == {"forwards", "gradients", "seconds"}
    assert found.cost["seconds"] > 0
    details = json.loads(json.dumps(found.details))
    assert {"baseline", "space", "policy", "mode", "data", "dtype", "device", "versions"} <= set(details)
    assert details["data"]["fingerprint"] == objective.fingerprint
    assert details["space"]["k"] == space.k
    if name != "sam":  # nothing in it is random
        assert details["seed"] == 1
    assert set(found.row()) >= {"measure", "value", "se", "unit", "status", "cost_forwards"}


@pytest.mark.parametrize("name", sorted(CHEAP))
def test_rule_2_the_same_seed_gives_the_same_bits(name):
    objective, space = setting()
    a, b = (get(name)(objective, space, seed=5, **CHEAP[name]) for _ in range(2))
    assert a.value == b.value
    assert a.draws == b.draws


@pytest.mark.parametrize("name", sorted(CHEAP))
def test_rule_4_a_model_left_in_training_mode_is_measured_in_eval_mode(name):
    objective, space = setting(ConvNet)
    training = get(name)(objective, space, **CHEAP[name])
    space.model.eval()
    assert get(name)(objective, space, **CHEAP[name]).value == training.value


@pytest.mark.parametrize("name", sorted(CHEAP))
def test_rule_5_the_batch_size_changes_rounding_only(name):
    model = seeded(Mlp).double()
    x, y = data(Mlp)
    space = Space(model, [n for n, _ in model.named_parameters()])
    found = [
        get(name)(Objective(model, x.double(), y, batch_size=size), space, **CHEAP[name]).value for size in (7, 64, 30)
    ]
    np.testing.assert_allclose(found, found[0], rtol=1e-7)


@pytest.mark.parametrize("name", sorted(CHEAP))
def test_rule_6_a_centre_that_is_nan_is_diverged_and_warned_of(name):
    model = seeded(Mlp)
    with torch.no_grad():
        model.down.weight[0, 0] = math.nan
    objective, space = Objective(model, *data(Mlp)), Space(model, ["up.weight", "down.weight"])
    with pytest.warns(RuntimeWarning, match="the centre's loss is inf or NaN"):
        found = get(name)(objective, space, **CHEAP[name])
    assert found.status == "diverged"
    assert math.isnan(found.value)


@pytest.mark.parametrize("name", sorted(CHEAP))
def test_an_objective_on_another_model_is_refused(name):
    with pytest.raises(LandscapeError, match="found another model"):
        get(name)(setting()[0], setting()[1])


def test_the_card_has_every_measure_and_survives_one_that_fails():
    objective, space, *_ = bowl()  # no classes: no noise radius
    seen: list[Estimate] = []
    found = measure_all(objective, space, seed=2, options=CHEAP, on_measure=seen.append)
    assert found == seen
    by_name = dict(zip(names(), found, strict=True))
    failed = by_name.pop("noise_radius")
    assert failed.status == "failed"
    assert failed.measure == "noise_radius"
    assert failed.unit == "alpha"
    assert failed.details["reason"].startswith("expected class scores")
    assert all(e.status != "failed" for e in by_name.values())
    assert by_name["average"].value == average.measure(objective, space, seed=2, directions=2).value
    assert len({e.measure for e in found}) == len(names())


def test_the_card_takes_a_choice_and_refuses_wrong_names():
    objective, space = setting()
    found = measure_all(objective, space, ["sam", "average"], options={"sam": {"m": 5}})
    assert [e.measure for e in found] == ["m_sharpness", "average_sharpness"]
    assert found[0].details["m"] == 5
    with pytest.raises(LandscapeError, match="found 'averag'; nearest: 'average'"):
        measure_all(objective, space, ["averag"])
    with pytest.raises(LandscapeError, match="options of measures that are measured, found some of sam"):
        measure_all(objective, space, ["average"], options={"sam": {}})


def test_blocks_are_module_paths_up_to_the_first_number():
    expected = {
        "blocks.3.norm1.weight": "blocks.3",
        "blocks.11.attn.qkv.weight": "blocks.11",
        "blocks.0.1.conv_pw.weight": "blocks.0",
        "layers.2": "layers",
        "patch_embed.proj.weight": "patch_embed.proj",
        "head.weight": "head",
        "cls_token": "cls_token",
        "0.weight": "0",
    }
    assert {name: block_of(name) for name in expected} == expected


def test_per_layer_is_the_same_noise_restricted_to_a_block():
    objective, space, hessian, _, _ = bowl(3)
    found = per_layer(objective, space, rho=0.3, directions=3)
    # one block only: it is the whole
    assert list(found.blocks) == ["map"]
    assert found.blocks["map"].draws == found.whole.draws
    d = [draw(space, s).tensors["map.weight"].numpy() for s in range(3)]
    exact = [0.5 * 0.09 * np.einsum("ri,ij,rj->", m, hessian, m) for m in d]
    np.testing.assert_allclose(found.whole.draws, exact, rtol=1e-9)


def test_per_layer_against_spaces_of_one_block_each_the_sharpest_first():
    objective, space = setting(TinyVit)
    before = everything(space.model)
    found = per_layer(objective, space, rho=0.2, directions=3, seed=4)
    assert everything(space.model) == before
    assert set(found.still) == {"norm", "scale", "gamma"}
    rises = [e.value for e in found.blocks.values()]
    assert rises == sorted(rises, reverse=True)
    for block, estimate in found.blocks.items():
        own = Space(space.model, [n for n in space.names if block_of(n) == block])
        alone = average.measure(objective, own, rho=0.2, directions=3, seed=4)
        assert estimate.draws == alone.draws
        assert estimate.se == alone.se
        assert estimate.cost["forwards"] == 6
        assert estimate.details["moving"] == own.k
    assert found.whole.value == average.measure(objective, space, rho=0.2, directions=3, seed=4).value
    frame = found.to_frame()
    assert list(frame["block"]) == [*found.blocks, "(all)"]
    assert found.whole.value != pytest.approx(sum(rises), rel=1e-6)
    assert "sharpest" in repr(found)
    assert next(iter(found.blocks)) in found._repr_html_()


def test_per_layer_takes_a_grouping_of_its_own():
    objective, space = setting(Mlp, policy=Policy(bias_and_norm="vector"))
    found = per_layer(objective, space, directions=2, block=lambda name: name.rpartition(".")[2])
    assert set(found.blocks) == {"weight", "bias"}
    assert found.blocks["bias"].details["tensors"] == ["up.bias", "down.bias"]


@pytest.mark.filterwarnings("ignore:.*inf or NaN")
def test_per_layer_puts_a_block_that_breaks_first():
    model = seeded(Mlp).double()
    w = model.down.weight.detach().clone()

    def loss(logits, targets):
        plain = nn.functional.cross_entropy(logits, targets, reduction="none")
        return plain + (0 if torch.equal(w, model.down.weight.detach()) else math.nan)

    x, y = data(Mlp)
    space = Space(model, ["up.weight", "down.weight"])
    found = per_layer(Objective(model, x.double(), y, loss=loss), space, directions=2)
    assert list(found.blocks) == ["down", "up"]
    assert found.blocks["down"].status == "diverged"
    assert found.blocks["down"].details["nonfinite_points"] == 4
    assert found.blocks["up"].details["nonfinite_points"] == 0
    assert found.blocks["up"].status != "diverged"
