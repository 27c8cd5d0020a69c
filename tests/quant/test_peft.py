"""Folders of peft: one made by peft of a text model, forged ones, and those that cannot be taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from quant.errors import QuantError
from quant.lowbit import Lowbit, LowbitTensor, read_lowbit, to_bytes, write_lowbit
from quant.peft import read_peft, write_peft, write_safetensors

CONFIG = {"peft_type": "LORA", "r": 3, "lora_alpha": 8, "target_modules": ["q_proj"], "modules_to_save": None, "x": {}}


def folder(path, *, dtype=torch.float32, config=None, more=None):
    """A folder as peft writes it, of 12 layers; gives its tensors."""
    torch.manual_seed(0)
    state = {
        f"base_model.model.h.{i}.q_proj.lora_{part}.weight": torch.randn(shape).to(dtype)
        for i in range(12)
        for part, shape in (("A", (3, 16)), ("B", (16, 3)))
    }
    state |= more or {}
    path.mkdir(exist_ok=True)
    save_file(state, path / "adapter_model.safetensors", metadata={"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps(config or CONFIG))
    return state


def through(source, tmp_path, **options):
    """In, to disk, and out again: the written tensors and configuration, and the file between."""
    write_lowbit(tmp_path / "x.lowbit", read_peft(source, **options))
    lowbit = read_lowbit(tmp_path / "x.lowbit")
    write_peft(tmp_path / "out", lowbit)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    return load_file(tmp_path / "out" / "adapter_model.safetensors"), config, lowbit


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_in_and_out_gives_equal_tensors(tmp_path, dtype):
    state = folder(tmp_path / "in", dtype=dtype)
    back, config, lowbit = through(tmp_path / "in", tmp_path)
    assert same(back, state)
    assert config == CONFIG
    assert [t.name.split(".")[3] for t in lowbit.tensors[::2]] == [str(i) for i in range(12)]
    assert len(to_bytes(lowbit)) <= sum(t.numel() * t.dtype.itemsize for t in state.values()) + 150


def test_quantised_on_the_way_in(tmp_path):
    """Matrices are, vectors and whole saved modules are not; what comes out are the values of the codes."""
    head = {"base_model.model.score.weight": torch.randn(4, 16), "base_model.model.h.0.q_proj.bias": torch.randn(16)}
    state = folder(tmp_path / "in", config={**CONFIG, "modules_to_save": ["score"]}, more=head)
    back, _, lowbit = through(tmp_path / "in", tmp_path, bits=2, quantizer="gaussian_l2/row")
    for name, w in state.items():
        if ".lora_" in name:
            expected = LowbitTensor.quantised(name, w, quantizer="gaussian_l2/row", bits=2).dense()
            assert torch.equal(back[name], expected)
            assert max(len(row.unique()) for row in back[name]) <= 4
        else:
            assert torch.equal(back[name], w)
    assert lowbit.header["head"] == ["base_model.model.score"]
    assert len(lowbit.without_head().tensors) == len(state) - 1


def test_only_factors_are_quantised(tmp_path):
    """Not a table that peft saves beside its factors, nor rows of one that were trained, prompts, or other matrices."""
    stem = "base_model.model.model.embed_tokens."
    kept = ("base_layer.weight", "token_adapter.trainable_tokens_delta", "prompt_embeddings", "x.lora_E", "x.ia3_l")
    factors = (
        "lora_embedding_A", "lora_embedding_B", "x.lora_A.default.weight", "x.lora_B.weight", "x.hada_w1_a",
        "x.hada_w2_b", "x.lokr_w1", "x.lokr_w2_a",
    )  # fmt: skip
    folder(tmp_path / "in", more={stem + name: torch.randn(8, 4) for name in (*kept, *factors)})
    read = {t.name: t.bits for t in read_peft(tmp_path / "in", bits=1).tensors}
    assert {name: read[stem + name] for name in kept} == dict.fromkeys(kept, 32)
    assert {name: read[stem + name] for name in factors} == dict.fromkeys(factors, 1)


def test_a_folder_that_peft_saved_of_a_language_model(tmp_path):
    """data/peft_text, of peft 0.21: LoRA of rank 2 on the queries and values of a Llama of two blocks of width 16."""
    source = Path(__file__).parent / "data" / "peft_text"
    back, config, lowbit = through(source, tmp_path)
    assert same(back, load_file(source / "adapter_model.safetensors"))
    assert config == json.loads((source / "adapter_config.json").read_text())
    assert len(back) == 8
    payload = sum(t.nbytes for t in lowbit.tensors)
    assert len(to_bytes(lowbit)) <= payload + 100


@pytest.mark.slow
def test_a_text_models_lora_made_by_peft(tmp_path):
    """What peft saved, through a file and out, is opened by peft again and gives the same logits."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)

    class Text(torch.nn.Module):
        """A next-word model of two blocks."""

        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(11, 8)
            self.layers = torch.nn.ModuleList(
                torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in "ab"
            )
            self.score = torch.nn.Linear(8, 11)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.words(ids)
            for layer in self.layers:
                x = layer(x)
            return self.score(x)

    base = Text().eval()
    ids = torch.arange(10).reshape(2, 5)
    config = peft.LoraConfig(
        r=3, target_modules=["linear1", "linear2"], modules_to_save=["score"], init_lora_weights=False
    )
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        logits = model(ids)
    model.save_pretrained(tmp_path / "in")
    before = load_file(tmp_path / "in" / "adapter_model.safetensors")
    back, said, _ = through(tmp_path / "in", tmp_path)
    assert same(back, before)
    assert said == json.loads((tmp_path / "in" / "adapter_config.json").read_text())
    again = peft.PeftModel.from_pretrained(model.unload(), tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(again(ids), logits)


@pytest.mark.slow
def test_a_language_models_lora_made_by_peft(tmp_path):
    """As above with a causal model of transformers, built from a configuration."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 11, "num_attention_heads": 2}
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, num_key_value_heads=2, **sizes))
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(base, config).eval()
    model.save_pretrained(tmp_path / "in")
    back, said, lowbit = through(tmp_path / "in", tmp_path)
    assert same(back, load_file(tmp_path / "in" / "adapter_model.safetensors"))
    assert said == json.loads((tmp_path / "in" / "adapter_config.json").read_text())
    values = sum(t.nbytes for t in lowbit.tensors)
    assert len(to_bytes(lowbit)) <= values + 200


def test_plain_safetensors_out(tmp_path):
    tensors = [LowbitTensor.quantised("a", torch.randn(4, 4), quantizer="gaussian_l1", bits=1)]
    tensors.append(LowbitTensor.plain("b", torch.randn(3).bfloat16()))
    write_safetensors(tmp_path / "x.safetensors", Lowbit(header={"method": "lora", "scale": 0.5}, tensors=tensors))
    assert same(load_file(tmp_path / "x.safetensors"), {t.name: t.dense() for t in tensors})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert json.loads(file.metadata()["header"]) == {"method": "lora", "scale": 0.5}


def test_what_is_no_folder_of_peft_is_refused(tmp_path):
    source = tmp_path / "in"
    with pytest.raises(QuantError, match=r"expected a folder with adapter_config\.json"):
        read_peft(tmp_path)
    folder(source)
    whole = (source / "adapter_model.safetensors").read_bytes()
    (source / "adapter_model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(QuantError, match=r"adapter_model\.safetensors: expected tensors, found a damaged file"):
        read_peft(source)
    (source / "adapter_model.safetensors").rename(source / "adapter_model.bin")
    with pytest.raises(QuantError, match=r"adapter_model\.bin is a pickle and is not opened"):
        read_peft(source)
    for text in ("{", "[]", "{}", '{"peft_type": 3}'):
        (source / "adapter_config.json").write_text(text)
        with pytest.raises(QuantError, match=r"adapter_config\.json: expected"):
            read_peft(source)


def test_saved_modules_are_a_list_of_names(tmp_path):
    folder(tmp_path / "in")
    (tmp_path / "in" / "adapter_config.json").write_text('{"peft_type": "LORA", "modules_to_save": 5}')
    with pytest.raises(QuantError, match="a list of names as modules_to_save, found 5"):
        read_peft(tmp_path / "in")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
@pytest.mark.parametrize("bits", [32, 2])
def test_tensors_of_whole_numbers_are_refused(tmp_path, dtype, bits):
    """One line that names the tensor once."""
    folder(tmp_path / "in", more={"h.0.lora_A.weight": torch.ones(2, 2).to(dtype)})
    with pytest.raises(QuantError) as caught:
        read_peft(tmp_path / "in", bits=bits)
    said = f"h.0.lora_A.weight: expected floats of 16, 32 or 64 bits, found {dtype}"
    assert str(caught.value) == f"{tmp_path / 'in'}: {said}"


def test_an_empty_tensor_is_named_once(tmp_path):
    folder(tmp_path / "in", more={"h.0.bias": torch.ones(0)})
    with pytest.raises(QuantError, match=r"in: h\.0\.bias: expected values of") as caught:
        read_peft(tmp_path / "in")
    assert str(caught.value).count("h.0.bias") == 1


def test_only_what_came_from_peft_goes_back(tmp_path):
    with pytest.raises(QuantError, match="imported from a peft folder"):
        write_peft(tmp_path / "out", Lowbit(header={"method": "lora"}, tensors=[]))
    assert not (tmp_path / "out").exists()
