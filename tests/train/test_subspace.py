"""The random subspace against a dense projection written out, its law of counts, and a run on disk."""

from __future__ import annotations

import copy
import hashlib
import math

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from quant.lowbit import read_lowbit
from train import methods
from train.build import load_task
from train.errors import TrainError
from train.loop import fit
from train.methods import subspace
from train.recipe import Recipe
from train.run import LOWBIT, Run
from train.spec import RunSpec

SEED = 5
SPEC = RunSpec(
    task="digits", train_size=40, test_size=20, backbone="random:test_vit", img_size=32, method="subspace", dim=6,
    scale=2.0, recipe=Recipe(epochs=1, batch_size=16, lr=0.05, warmup_epochs=0),
)  # fmt: skip
Z = "patch_embed.proj.subspace.z.weight"


class Net(nn.Module):
    """A convolution, two linear layers and a head; one layer of a kind that does not move."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 2, stride=2, groups=1)
        self.norm = nn.LayerNorm(12)
        self.wide = nn.Linear(12, 8)
        self.narrow = nn.Linear(8, 5, bias=False)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(torch.tanh(self.narrow(torch.tanh(self.wide(self.norm(self.stem(x).flatten(1)))))))


def net(dim: int = 7, *, scale: float = 1.0, seed: int = SEED, z: bool = True) -> Net:
    torch.manual_seed(1)
    model = Net().double()
    torch.manual_seed(seed)
    methods.get("subspace").apply(model, dim=dim, scale=scale)
    model.double()
    if z:
        with torch.no_grad():
            model.stem.subspace.z.weight.copy_(torch.randn(dim, generator=torch.Generator().manual_seed(2)))
    return model


def projection(model: Net, dim: int, seed: int = SEED) -> torch.Tensor:
    """P as a dense matrix (D, dim), weight by weight from its definition in words, in whole numbers of Python."""
    rows = []
    for name in ("stem", "wide", "narrow"):
        key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
        drawn = np.random.Philox(key=key).random_raw(model.get_submodule(name).weight.numel())
        for u in map(int, drawn):
            row = [0.0] * dim
            row[((u >> 32) * dim) >> 32] = -1.0 if u % 2 else 1.0
            rows.append(row)
    p = torch.tensor(rows, dtype=torch.float64)
    return p / (p != 0).sum(dim=0).clamp(min=1).double().sqrt()


def dense(model: Net) -> torch.Tensor:
    return torch.cat([model.get_submodule(name).moved().flatten() for name in ("stem", "wide", "narrow")])


def test_weights_move_by_the_literal_product_with_a_dense_projection():
    model, still = net(scale=1.7), net(scale=1.7, z=False)
    z = model.stem.subspace.z.weight.flatten()
    torch.testing.assert_close(dense(model) - dense(still), 1.7 * projection(model, 7) @ z, rtol=1e-12, atol=1e-12)
    assert torch.equal(dense(still), torch.cat([w.weight.flatten() for w in (still.stem, still.wide, still.narrow)]))


def test_columns_are_orthonormal():
    p = projection(net(), 7)
    columns = []
    for j in range(7):  # the move of one coordinate at a time is a column of what the network really uses
        model = net(z=False)
        before = dense(model)
        with torch.no_grad():
            model.stem.subspace.z.weight[0, j] = 1.0
        columns.append((dense(model) - before).detach())
    found = torch.stack(columns, dim=1)
    torch.testing.assert_close(found.T @ found, torch.eye(7, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, p, rtol=1e-12, atol=1e-12)


def test_the_gradient_is_the_transposed_projection_of_the_dense_one():
    model, scale = net(scale=0.6), 0.6
    merged = methods.get("subspace").merge(model)
    x = torch.randn(9, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y = torch.arange(9) % 4
    nn.functional.cross_entropy(model(x), y).backward()
    for name in ("stem", "wide", "narrow"):
        merged.get_submodule(name).weight.requires_grad_(True)
    nn.functional.cross_entropy(merged(x), y).backward()
    g = torch.cat([merged.get_submodule(name).weight.grad.flatten() for name in ("stem", "wide", "narrow")])
    found = model.stem.subspace.z.weight.grad.flatten()
    torch.testing.assert_close(found, scale * projection(model, 7).T @ g, rtol=1e-10, atol=1e-14)
    assert model.wide.weight.grad is None


def test_the_projection_is_that_of_the_seed_whatever_was_drawn_before_it():
    first = net()
    torch.manual_seed(1)
    second = Net().double()
    torch.manual_seed(SEED)
    torch.randn(1000)
    methods.get("subspace").apply(second, dim=7)
    assert torch.equal(first.wide.place, second.wide.place)
    assert not torch.equal(first.wide.place, net(seed=SEED + 1).wide.place)
    assert not torch.equal(first.wide.place[:40], first.narrow.place[:40])


def test_coordinates_get_their_fair_share_of_weights_of_either_sign():
    """Counts are binomial: chi-square over 2 dim cells lies within five of its deviations."""
    dim, weights = 50, 200_000
    counts = np.bincount(subspace.places(0, "blocks.0.attn.qkv", weights, dim), minlength=2 * dim)
    assert counts.sum() == weights
    fair = weights / (2 * dim)
    chi2 = float(((counts - fair) ** 2 / fair).sum())
    cells = 2 * dim - 1
    assert abs(chi2 - cells) < 5 * math.sqrt(2 * cells)


def test_the_first_numbers_never_change():
    """Files hold z alone: another projection would make other networks of them."""
    assert subspace.places(7, "blocks.0.mlp.fc1", 8, 10).tolist() == [2, 17, 8, 15, 0, 12, 8, 4]


def test_merged_equals_factored_to_rounding_and_the_layers_share_one_parameter():
    model = net(scale=3.0)
    merged = methods.get("subspace").merge(model)
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    assert torch.equal(merged(x), model(x))
    assert {type(m) for m in merged.modules()} <= {Net, nn.Conv2d, nn.LayerNorm, nn.Linear}
    assert "place" not in dict(merged.named_buffers())
    for twin in (model, copy.deepcopy(model)):
        assert twin.stem.subspace is twin.wide.subspace is twin.narrow.subspace
        assert methods.get("subspace").adapter_names(twin) == ["stem.subspace.z.weight"]


def test_more_coordinates_than_weights_are_refused_in_one_line():
    with pytest.raises(TrainError, match=r"dimension 161 needs .* found 160 weights in 3 linear layers") as caught:
        net(dim=161)
    assert "\n" not in str(caught.value)
    assert net(dim=160)(torch.zeros(1, 2, 4, 4, dtype=torch.float64)).isfinite().all()
    with pytest.raises(TrainError, match="found 0 weights in 0 linear layers"):
        methods.get("subspace").apply(nn.Sequential(nn.ReLU()), dim=1)


def test_the_whole_vit_but_its_head_moves():
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5)
    method = methods.get("subspace")
    method.apply(model, dim=3)
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    wanted = ["patch_embed.proj", *[f"blocks.{i}.{part}" for i in range(2) for part in parts]]
    assert method.touched(model) == [f"{name}.weight" for name in wanted]
    assert method.trainable(model) == [Z, "head.weight", "head.bias"]
    assert method.parameters(16, 2, 3) == 3


@pytest.fixture(scope="module", params=[32, 2])
def run(request, tmp_path_factory) -> Run:
    from dataclasses import replace

    spec = replace(SPEC, bits=request.param)
    return fit(spec, load_task(spec), tmp_path_factory.mktemp("runs"), quiet=True)


def test_a_run_keeps_z_alone_and_opens_again_bit_equal(run: Run):
    """NUMERICS rule 26; the file holds dim values (or codes with two statistics) beside the head."""
    assert set(run.trained_state()) == {Z, "head.weight", "head.bias"}
    assert run.metrics["adapter_bytes"] == (4 * 6 if run.spec.bits == 32 else 2 + 8)
    assert run.trained_state()[Z].abs().max() > 0.01, "it was trained"
    assert Run.open(run.path).verify()
    latent, deployed = run.model("latent"), run.model("deployed")
    x, _ = run.tensors("test")
    assert torch.equal(latent(x), deployed(x))


def test_a_lone_file_finds_its_projection_by_the_seed_in_it(run: Run, tmp_path):
    from analyses.checkpoint import open_checkpoint
    from analyses.options import Options

    assert read_lowbit(run.path / LOWBIT).header["seed"] == 0
    lone = tmp_path / "z.lowbit"
    lone.write_bytes((run.path / LOWBIT).read_bytes())
    x, _ = run.tensors("test")
    assert torch.equal(open_checkpoint(lone, Options(train_size=40)).model(x), run.model()(x))


def test_a_file_of_a_named_backbone_says_its_seed_too():
    from train.files import header

    record = {"spec": {**SPEC.to_dict(), "backbone": "vit_tiny32", "seed": 4}, "classes": ["a"]}
    record["fingerprints"] = {"backbone": "00"}
    assert header(record, [])["seed"] == 4
    record["spec"] |= {"method": "lora"}
    assert "seed" not in header(record, [])
