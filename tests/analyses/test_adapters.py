"""Adapter files that lie alone, opened as checkpoints: the logits are those of the network that they are of."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from analyses.checkpoint import open_checkpoint
from analyses.errors import AnalysisError
from analyses.options import Options
from quant.fake import bake
from quant.lowbit import Lowbit, read_lowbit, write_lowbit
from quant.petl import write_petl
from train import backbones
from train.build import build, predict
from train.files import write_weights
from train.methods import get
from train.spec import RunSpec
from train.tasks import load

CLASSES = [str(i) for i in range(10)]
INPUTS = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
OPTIONS = Options(train_size=40)


def written(folder, spec: RunSpec):
    """A network with weights as after training, and the file that a run would leave of it."""
    model = build(spec, 10)
    torch.manual_seed(7)
    with torch.no_grad():
        for name in get(spec.method).trainable(model):
            model.get_parameter(name).normal_(std=0.3)
    fingerprint = backbones.describe("vit_tiny32").hash
    record = {"spec": spec.to_dict(), "fingerprints": {"backbone": fingerprint}, "classes": CLASSES}
    write_weights(folder, model, get(spec.method).kept(model), record)
    return folder / "adapter.lowbit", bake(model).eval()


@pytest.mark.parametrize(
    ("method", "bits", "head_bits"), [("lora", 1, 32), ("adaptformer", 3, 1), ("lora", 32, 32), ("linear", 32, 1)]
)
def test_a_lone_lowbit_file_is_the_network_it_was_written_from(tmp_path, method, bits, head_bits):
    spec = RunSpec(task="digits", method=method, dim=3, bits=bits, head_bits=head_bits, scale=0.5)
    path, model = written(tmp_path, spec)
    opened = open_checkpoint(path, OPTIONS)
    assert torch.equal(predict(opened.model, INPUTS), predict(model, INPUTS))
    assert (opened.method, opened.dim, opened.bits) == (method, spec.dim, bits)
    assert opened.task.name == "digits"
    assert opened.labels()["run"] == "adapter.lowbit"
    assert not any(module.training for module in opened.model.modules())


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """A file of LoRA r3 at 1 bit."""
    path, _ = written(tmp_path_factory.mktemp("lora"), RunSpec(task="digits", method="lora", dim=3, bits=1))
    return path


def test_two_files_of_other_values_are_told_apart(tmp_path, lora):
    one = lora
    assert open_checkpoint(one, OPTIONS).label == "LoRA r3, 1 bit"
    other, _ = written(tmp_path / "other", RunSpec(task="digits", method="lora", dim=2, bits=1))
    again = shutil.copy(one, tmp_path / "again.lowbit")
    first, second, third = (open_checkpoint(path, OPTIONS).identity for path in (one, other, again))
    assert first == third
    assert first != second


def test_the_papers_bin_beside_its_yaml(tmp_path, shared):
    """A ViT of the size that its name says, as the paper's code would have left it."""
    backbone = "random:vit_tiny_patch16_224"
    sizes = {"task": "digits", "backbone": backbone, "img_size": 32, "inputs": "unit", "scale": 2.0}
    spec = RunSpec(method="adaptformer", dim=8, bits=1, quantizer="released", **sizes)
    path, model = written(tmp_path, spec)
    out, config = write_petl(tmp_path / "out", read_lowbit(path))
    opened = open_checkpoint(out, Options(train_size=40, img_size=32))
    assert torch.equal(predict(opened.model, INPUTS), predict(model, INPUTS))
    assert opened.transform.mean == (0.0, 0.0, 0.0)
    assert opened.label == "AdaptFormer h8, 1 bit"
    config.unlink()
    with pytest.raises(ValueError, match="expected its YAML as"):
        open_checkpoint(out, OPTIONS)
    released = shared / "petl_bin" / "models_bin" / "lora" / "cifar-bit1-dim1.bin"
    with pytest.raises(AnalysisError, match="made for the task 'cifar', which is none of ours: --task"):
        open_checkpoint(released, OPTIONS)


def peft_folder(path, state, **config):
    path.mkdir(exist_ok=True)
    save_file(state, path / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "modules_to_save": ["head"], **config}
    (path / "adapter_config.json").write_text(json.dumps(said))
    return path


def lora_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"blocks.1.attn.qkv": (576, 192), "blocks.3.mlp.fc1": (768, 192)}
    state = {}
    for module, (outputs, inputs) in shapes.items():
        state[f"base_model.model.{module}.lora_A.weight"] = torch.randn(2, inputs, generator=generator) / 8
        state[f"base_model.model.{module}.lora_B.weight"] = torch.randn(outputs, 2, generator=generator) / 8
    state["base_model.model.head.weight"] = torch.randn(10, 192, generator=generator)
    state["base_model.model.head.bias"] = torch.randn(10, generator=generator)
    return state


@pytest.mark.parametrize(
    ("config", "factors"),
    [
        ({}, (3.0, 3.0)),
        ({"use_rslora": True}, (6 / 2**0.5,) * 2),
        ({"alpha_pattern": {"blocks.1.attn.qkv": 1, "fc2": 9}}, (0.5, 3.0)),
        ({"alpha_pattern": {"fc1": 4}}, (3.0, 2.0)),
    ],
)
def test_a_peft_folder_is_the_network_with_lora_beside_its_layers(tmp_path, config, factors):
    """Against the layers with their change computed beside them, x W' + s (x A') B'."""
    state = lora_state()
    path = peft_folder(tmp_path / "vit", state, **config)
    opened = open_checkpoint(path, Options(train_size=40, task="digits", backbone="vit_tiny32"))
    model = backbones.create("vit_tiny32", 10).eval()
    for name, factor in zip(("blocks.1.attn.qkv", "blocks.3.mlp.fc1"), factors, strict=True):
        down, up = (state[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        beside = lambda _, x, y, a=down, b=up, s=factor: y + s * (x[0] @ a.T) @ b.T  # noqa: E731
        model.get_submodule(name).register_forward_hook(beside)
    with torch.no_grad():
        model.head.weight.copy_(state["base_model.model.head.weight"])
        model.head.bias.copy_(state["base_model.model.head.bias"])
    torch.testing.assert_close(predict(opened.model, INPUTS), predict(model, INPUTS), rtol=1e-4, atol=1e-4)
    assert (opened.method, opened.dim, opened.label) == ("full", 2, "vit")


@pytest.mark.parametrize(
    ("changed", "config", "text"),
    [
        ({"base_model.model.h.0.q_proj.lora_A.weight": torch.ones(2, 192)}, {}, "no linear layer of that shape"),
        ({"base_model.model.head.weight": None}, {}, "no head.weight: save the head with it, by modules_to_save"),
        ({"base_model.model.norm.scale": torch.ones(3)}, {}, "it is of another model"),
        ({"base_model.model.head.bias": torch.full((10,), torch.nan)}, {}, "not finite"),
        ({}, {"use_dora": True}, "expected plain LoRA"),
        ({}, {"peft_type": "IA3"}, "expected plain LoRA, found IA3"),
        ({}, {"alpha_pattern": 3}, "field of another kind"),
    ],
)
def test_a_peft_folder_of_another_model_is_refused(tmp_path, changed, config, text):
    state = {name: value for name, value in {**lora_state(), **changed}.items() if value is not None}
    path = peft_folder(tmp_path / "vit", state, **config)
    with pytest.raises(AnalysisError, match=text) as caught:
        open_checkpoint(path, Options(train_size=40, task="digits", backbone="vit_tiny32"))
    assert "\n" not in str(caught.value)
    with pytest.raises(AnalysisError, match="--backbone and --task should say"):
        open_checkpoint(path, OPTIONS)


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (
            {"backbone_hash": "0" * 64},
            "made for another backbone: expected content 0000000000000000, found .*--backbone",
        ),
        ({"classes": list("abcdefghij")}, "tells 10 classes apart, a, b, c, .*--task should name"),
        ({"method": "adaptformer"}, "lacks the tensor blocks.0.adapter.down.weight: it is not of AdaptFormer h3"),
        ({"method": "convpass"}, "unknown method 'convpass'"),
        ({"method": None}, "does not say its method"),
        ({"backbone": None}, "does not say its --backbone"),
        ({"dim": "big"}, "dim"),
        ({"dim": 10**9}, "weights: expected a dim of no more, found 1000000000"),
        ({"classes": 3}, "field of another kind"),
        ({"scale": "big"}, "field of another kind"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, lora, header, text):
    lowbit, path = read_lowbit(lora), tmp_path / "other.lowbit"
    write_lowbit(path, Lowbit(header={**lowbit.header, **header}, tensors=lowbit.tensors))
    with pytest.raises(ValueError, match=text) as caught:
        open_checkpoint(path, OPTIONS)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_random_backbones_are_drawn_again_by_their_seed(tmp_path):
    spec = RunSpec(task="digits", method="linear", backbone="random:vit_tiny32", seed=3)
    model = build(spec, 10).eval()
    from train.build import backbone_hash

    record = {"spec": spec.to_dict(), "fingerprints": {"backbone": backbone_hash(spec)}, "classes": CLASSES}
    write_weights(tmp_path, model, get("linear").kept(model), record)
    opened = open_checkpoint(tmp_path / "adapter.lowbit", OPTIONS)
    assert torch.equal(predict(opened.model, INPUTS), predict(model, INPUTS))
    assert load("digits", train_size=40).fingerprint == opened.task.fingerprint
