"""Backbones: every weight arrives, the head is fresh and seeded, positions are resampled, bad files are one line."""

from __future__ import annotations

import hashlib
import json
import pickle

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from train import backbones
from train.backbones import BackboneInfo, content_hash, create, describe
from train.errors import TrainError
from train.pretrain import ARCHITECTURE, MEAN, STD

TINY = "vit_tiny32"
ARGUMENTS = {k: v for k, v in ARCHITECTURE.items() if k != "architecture"}
DINO = "test_vit"  # timm's smallest ViT: 160 pixels, patches of 16, width 64


def body(**changes) -> dict[str, torch.Tensor]:
    """Random weights in the layout of the shipped file: float16, no head."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = timm.create_model(ARCHITECTURE["architecture"], num_classes=7, **{**ARGUMENTS, **changes})
        return {k: torch.randn_like(v).half() for k, v in model.state_dict().items() if not k.startswith("head.")}


@pytest.fixture
def assets(tmp_path, monkeypatch):
    """A random file in place of the shipped one, with a card whose normalisation is its own."""
    folder = tmp_path / "assets"
    folder.mkdir()
    save_file(body(), folder / f"{TINY}.safetensors")
    card = {"name": TINY, **ARCHITECTURE, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "recipe": {"epochs": 1}}
    (folder / f"{TINY}.json").write_text(json.dumps(card))
    monkeypatch.setattr(backbones, "ASSETS", folder)
    return folder


def refused(name: str, *said: str, **options) -> None:
    with pytest.raises(TrainError) as caught:
        create(name, 4, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    assert all(s in text for s in said), text


def test_the_shipped_backbone_has_every_weight_in_float32(assets):
    model = create(TINY, 7)
    state = model.state_dict()
    for name, value in body().items():
        assert state.pop(name).equal(value.float())
    assert set(state) == {"head.weight", "head.bias"}
    assert all(v.dtype == torch.float32 for v in model.state_dict().values())
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert model.training


def test_the_shipped_backbone_is_described_by_its_card(assets):
    info = describe(TINY)
    assert (info.img_size, info.mean, info.std) == (32, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert info.transform().size == 32
    assert info.transform().mean == info.mean
    assert info.architecture == ARCHITECTURE["architecture"]


def test_the_hash_is_of_what_is_stored_whatever_the_size(assets):
    literal = hashlib.sha256()
    for name, value in sorted(body().items()):
        literal.update(json.dumps([name, "float16", list(value.shape)]).encode() + value.numpy().tobytes())
    assert describe(TINY).hash == describe(TINY, img_size=64).hash == literal.hexdigest()
    assert describe("random:vit_tiny32").hash == "random"


def test_the_hash_leaves_out_the_head_and_sees_all_else():
    state = {"a": torch.arange(6.0), "head.weight": torch.ones(2), "head.bias": torch.ones(2), "n": torch.tensor(3)}
    one = content_hash(state)
    assert content_hash({k: state[k] for k in ("n", "a")}) == one
    assert content_hash({**state, "a": state["a"].reshape(2, 3)}) != one
    assert content_hash({**state, "a": state["a"].double()}) != one
    assert content_hash({**state, "a": state["a"] + 1e-6}) != one
    assert content_hash({**state, "b": state["a"]}) != one
    assert content_hash({**state, "a": torch.arange(12.0).reshape(6, 2).T.contiguous().T[:, 0] / 2}) == one


def test_one_seed_gives_one_head_whatever_the_weights(assets):
    """The head is torch's default Linear (PAPER 1.5), drawn first from the caller's generator."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        expected = torch.nn.Linear(192, 7)
        torch.manual_seed(11)
        one = create(TINY, 7)
        torch.manual_seed(11)
        two = create(TINY, 7, img_size=64, drop_path=0.1)
        three = create(TINY, 7)
    assert one.head.weight.equal(expected.weight)
    assert one.head.bias.equal(expected.bias)
    assert two.head.weight.equal(expected.weight)
    assert not three.head.weight.equal(expected.weight)


def test_random_backbones_follow_the_seed_and_need_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "ASSETS", tmp_path)
    with torch.random.fork_rng():
        states = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            states.append(create("random:vit_tiny32", 4).state_dict())
    name = "blocks.0.attn.qkv.weight"
    assert states[0][name].equal(states[1][name])
    assert not states[0][name].equal(states[2][name])
    assert (describe("random:vit_tiny32").mean, describe("random:vit_tiny32").std) == (MEAN, STD)


def test_positions_are_resampled_by_timm(assets):
    from timm.layers import resample_abs_pos_embed

    model = create(TINY, 4, img_size=64)
    stored = body()["pos_embed"].float()
    expected = resample_abs_pos_embed(stored, new_size=[8, 8], old_size=[4, 4], num_prefix_tokens=1)
    assert model.pos_embed.shape == (1, 65, 192)
    assert model.pos_embed.equal(expected)
    assert model.pos_embed[:, :1].equal(stored[:, :1])
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    assert describe(TINY, img_size=64).img_size == 64


def test_drop_path_rises_over_depth(assets):
    model = create(TINY, 4, drop_path=0.1)
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for b in model.blocks]
    assert rates == pytest.approx(np.linspace(0, 0.1, 6))


def test_models_pickle_and_carry_their_weights_once(assets):
    model = create(TINY, 4)
    data = pickle.dumps(model)
    assert len(data) < 4.2 * sum(p.numel() for p in model.parameters())
    assert pickle.loads(data).head.weight.equal(model.head.weight)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_local_weights_of_a_timm_network(tmp_path, suffix, wrapper):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stored = timm.create_model(DINO, num_classes=1000).state_dict()
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({wrapper: stored, "epoch": 3} if wrapper else stored, path)
    else:
        save_file(stored, path)
    name = f"{DINO}@{path}"
    model = create(name, 4, img_size=64)
    assert model.pos_embed.shape[1] == 4 * 4 + 1
    assert model.blocks[0].mlp.fc1.weight.equal(stored["blocks.0.mlp.fc1.weight"])
    cfg = timm.get_pretrained_cfg(DINO)
    assert (describe(name).mean, describe(name).std) == (cfg.mean, cfg.std)
    assert describe(name).hash == content_hash({k: v for k, v in stored.items() if not k.startswith("head.")})


def test_convolutional_networks_take_any_size(tmp_path):
    stored = timm.create_model("test_efficientnet").state_dict()
    save_file(stored, tmp_path / "e.safetensors")
    name = f"test_efficientnet@{tmp_path / 'e.safetensors'}"
    model = create(name, 4, img_size=96)
    assert describe(name, img_size=96).img_size == 96
    assert describe(name).head == ("classifier",)
    for key, value in stored.items():
        assert key.startswith("classifier") or model.state_dict()[key].equal(value)
    assert model.eval()(torch.zeros(1, 3, 96, 96)).shape == (1, 4)


def test_timm_names_are_described_without_their_weights():
    info = describe("vit_small_patch14_dinov2", img_size=112)
    assert (info.img_size, info.arguments["img_size"], info.weights) == (112, 112, "hub")
    assert info.mean == (0.485, 0.456, 0.406)
    assert describe("vit_base_patch16_224.orig_in21k").mean == (0.5, 0.5, 0.5)


def vit_npz(path, depth: int = 6, width: int = 192, grid: int = 4, patch: int = 8, mlp: int = 768):
    """A file in the layout of Google's ViT checkpoints, of the shipped architecture's size."""
    rng = np.random.default_rng(0)
    arrays = {
        "embedding/kernel": (patch, patch, 3, width), "embedding/bias": (width,), "cls": (1, 1, width),
        "Transformer/posembed_input/pos_embedding": (1, grid * grid + 1, width),
        "Transformer/encoder_norm/scale": (width,), "Transformer/encoder_norm/bias": (width,),
    }  # fmt: skip
    for i in range(depth):
        block, attention = f"Transformer/encoderblock_{i}/", "MultiHeadDotProductAttention_1/"
        for k in ("LayerNorm_0", "LayerNorm_2"):
            arrays |= {f"{block}{k}/scale": (width,), f"{block}{k}/bias": (width,)}
        for k in ("query", "key", "value"):
            arrays |= {f"{block}{attention}{k}/kernel": (width, 3, 64), f"{block}{attention}{k}/bias": (3, 64)}
        arrays |= {f"{block}{attention}out/kernel": (3, 64, width), f"{block}{attention}out/bias": (width,)}
        arrays |= {f"{block}MlpBlock_3/Dense_0/kernel": (width, mlp), f"{block}MlpBlock_3/Dense_0/bias": (mlp,)}
        arrays |= {f"{block}MlpBlock_3/Dense_1/kernel": (mlp, width), f"{block}MlpBlock_3/Dense_1/bias": (width,)}
    filled = {k: rng.standard_normal(shape).astype(np.float32) for k, shape in arrays.items()}
    np.savez(path, **filled)
    return filled


def test_googles_npz_files(tmp_path):
    stored = vit_npz(tmp_path / "v.npz")
    model = create(f"{TINY}@{tmp_path / 'v.npz'}", 4)
    qkv = model.blocks[2].attn.qkv.weight.detach().numpy()
    prefix = "Transformer/encoderblock_2/MultiHeadDotProductAttention_1/"
    expected = [stored[f"{prefix}{k}/kernel"].reshape(192, 192).T for k in ("query", "key", "value")]
    assert np.array_equal(qkv, np.concatenate(expected))
    assert np.array_equal(model.pos_embed.detach().numpy(), stored["Transformer/posembed_input/pos_embedding"])
    np.savez(tmp_path / "foreign.npz", images=np.zeros(3))
    refused(f"{TINY}@{tmp_path / 'foreign.npz'}", "foreign.npz", "do not fit")
    refused(f"test_efficientnet@{tmp_path / 'v.npz'}", "does not load .npz")
    vit_npz(tmp_path / "narrow.npz", width=128)
    refused(f"{TINY}@{tmp_path / 'narrow.npz'}", "narrow.npz", "do not fit")


def test_wrong_names_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "ASSETS", tmp_path)
    refused("vit_tiny33", "nearest: vit_tiny32")
    refused("vit_base_patch16_225", "vit_base_patch16_224")
    refused("vit_base_patch16_224.orig_in21", "orig_in21k")
    refused("weights.safetensors", "NAME@PATH")
    refused("vit_tiny32@nowhere.pth", "no such file")
    refused("vit_tiny32@weights.zip", ".safetensors")
    refused("random:vit_tiny32@x.pth", "NAME@PATH")
    refused("", "no architecture")
    refused(TINY, "card", "missing")
    refused("vit_tiny_patch16_224", "hub", "vit_tiny_patch16_224@PATH")
    refused("random:vit_tiny32", "not a multiple", "nearest: 32", img_size=30)
    refused("random:vit_tiny32", "at least 1 pixel", img_size=0)
    with pytest.raises(TrainError, match="at least one class"):
        create("random:vit_tiny32", 0)


def test_a_missing_or_damaged_asset_is_one_line(assets):
    (assets / f"{TINY}.safetensors").rename(assets / "elsewhere")
    refused(TINY, "vit_tiny32.safetensors", "missing")
    for text in ("{", "[]", "{}", '{"architecture": 3}', json.dumps({**ARCHITECTURE, "mean": 3, "std": [1, 1, 1]})):
        (assets / f"{TINY}.json").write_text(text)
        refused(TINY, "damaged")


@pytest.mark.parametrize("change", ["left over", "missing", "shape", "nan", "foreign", "empty"])
def test_weights_that_do_not_fit_are_one_line(tmp_path, change):
    state = body()
    if change == "left over":
        state["blocks.9.norm1.weight"] = torch.zeros(192)
    elif change == "missing":
        del state["blocks.3.mlp.fc1.weight"]
    elif change == "shape":
        state["norm.weight"] = torch.zeros(191)
    elif change == "nan":
        state["norm.bias"][3] = torch.nan
    else:
        state = {"conv.weight": torch.zeros(3)} if change == "foreign" else {}
    save_file(state, tmp_path / "w.safetensors")
    said = {"nan": "not finite", "empty": "no table"}.get(change, "do not fit")
    refused(f"{TINY}@{tmp_path / 'w.safetensors'}", "w.safetensors", said)


class Payload:
    """What a hostile pickle would hold: a call on loading."""

    def __reduce__(self):
        return (pytest.fail, ("the pickle was executed",))


def test_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"a": Payload()}, path)
    refused(f"{TINY}@{path}", "w.pth", "does not read")
    torch.save([torch.zeros(3)], path)
    refused(f"{TINY}@{path}", "no table of named tensors")
    torch.save({"a": torch.zeros(3), "b": 4}, path)
    refused(f"{TINY}@{path}", "no table of named tensors")


@given(
    cut=st.floats(0, 1),
    at=st.floats(0, 1),
    byte=st.integers(0, 255),
    suffix=st.sampled_from([".safetensors", ".pth", ".npz"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_are_refused(tmp_path, cut, at, byte, suffix):
    whole = tmp_path / f"whole{suffix}"
    state = {"cls_token": torch.zeros(1, 1, 192), "norm.weight": torch.ones(192)}
    if not whole.exists():
        if suffix == ".pth":
            torch.save(state, whole)
        elif suffix == ".npz":
            np.savez(whole, **{k: v.numpy() for k, v in state.items()})
        else:
            save_file(state, whole)
    data = bytearray(whole.read_bytes())
    data[int(at * (len(data) - 1))] = byte
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(bytes(data[: int(cut * len(data))]) if cut < 0.8 else bytes(data))
    info = BackboneInfo(
        name="x", architecture=DINO, arguments={}, img_size=32, mean=MEAN, std=STD, weights=path, head=("head",)
    )  # fmt: skip
    said = None
    try:
        assert len(info.hash) == 64  # reads the file; harmless damage gives other weights, and another hash
    except TrainError as error:
        said = str(error)
    assert said is None or (path.name in said and "\n" not in said)
