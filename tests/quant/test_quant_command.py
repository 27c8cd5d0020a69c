"""``python -m quant``: files in and out, and what they cost."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from quant.contents import contents
from quant.lowbit import Lowbit, LowbitTensor, read_lowbit, write_lowbit


@pytest.fixture
def quant(command):
    """Call ``python -m quant`` and see its exit code 0."""

    def call(*arguments: object) -> str:
        done = command("quant.__main__", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.fixture
def released(shared):
    folder = shared / "petl_bin"
    name = "adaptformer-bihead/cifar-bit1-dim1"
    return folder / "models_bin" / f"{name}.bin", folder / "configs" / f"{name}.yaml"


def test_the_papers_files_in_and_out(quant, released, tmp_path):
    path, config = released
    quant("import", path, "--config", config, "-o", tmp_path / "y.lowbit", "--dense")
    quant("import", path, "--config", config, "-o", tmp_path / "x.lowbit")
    assert (tmp_path / "y.lowbit").stat().st_size <= path.stat().st_size + 64
    assert (tmp_path / "x.lowbit").stat().st_size <= 11_750
    quant("export", tmp_path / "x.lowbit", "--to", "petl", "-o", tmp_path / "out")
    assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert yaml.safe_load((tmp_path / "out" / config.name).read_text()) == yaml.safe_load(config.read_text())
    quant("export", tmp_path / "x.lowbit", "--to", "safetensors", "-o", tmp_path / "x.safetensors")
    dense = load_file(tmp_path / "x.safetensors")
    assert dense["head.weight"].shape == (100, 768)
    assert len(dense["head.weight"].unique()) == 2


def test_a_peft_folder_in_and_out_with_its_quantiser(quant, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    save_file({"m.0.lora_A.weight": torch.randn(2, 8).half()}, source / "adapter_model.safetensors")
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    quant("import", source, "--from", "peft", "-o", tmp_path / "x.lowbit")
    quant("export", tmp_path / "x.lowbit", "--to", "peft", "-o", tmp_path / "out")
    before, after = (load_file(f / "adapter_model.safetensors") for f in (source, tmp_path / "out"))
    assert torch.equal(before["m.0.lora_A.weight"], after["m.0.lora_A.weight"])
    quant("import", source, "--out", tmp_path / "y.lowbit", "--bits", 2, "--quantizer", "gaussian_l2/f16")
    (tensor,) = read_lowbit(tmp_path / "y.lowbit").tensors
    assert (tensor.bits, tensor.quantizer, tensor.nbytes) == (2, "gaussian_l2/f16", 4 + 4)
    assert "peft LORA" in contents(tmp_path / "y.lowbit").summary()


def test_the_parts_of_a_file_sum_to_its_size(quant, tmp_path):
    tensors = [
        LowbitTensor.quantised("blocks.0.w", torch.randn(5, 7), quantizer="gaussian_l1/row/f16", bits=3),
        LowbitTensor.plain("blocks.0.scale", torch.randn(4)),
        LowbitTensor.quantised("head.weight", torch.randn(3, 8), quantizer="gaussian_l1", bits=1),
    ]
    path = tmp_path / "x.lowbit"
    header = {"method": "lora", "backbone": "b", "classes": ["red", "green", "blue"]}
    write_lowbit(path, Lowbit(header=header, tensors=tensors))
    frame = pd.read_csv(io.StringIO(quant("inspect", path))).set_index("part")
    sizes = frame["size_bytes"]
    assert sizes[["codes", "statistics", "values", "head", "checksum"]].tolist() == [14, 20, 16, 3 + 8, 8]
    assert sizes["file"] == path.stat().st_size == sizes.drop(["file", "file without head"]).sum()
    found = json.loads(quant("inspect", path, "--json"))
    assert found["file_bytes"] == sum(found["parts_bytes"].values()) == path.stat().st_size
    assert found["header"] == header
    assert [t["tensor"] for t in found["tensors"]] == [t.name for t in tensors]
    rest = tmp_path / "rest.lowbit"
    write_lowbit(rest, Lowbit(header={"method": "lora", "backbone": "b"}, tensors=tensors[:2]))
    assert found["without_head_bytes"] == sizes["file without head"] == rest.stat().st_size
    alone = contents(rest)
    assert alone.without_head_bytes == alone.file_bytes == rest.stat().st_size


def test_the_papers_bin_and_peft_folders_are_inspected_too(quant, released, tmp_path):
    path, config = released
    found = json.loads(quant("inspect", path, "--config", config, "--json"))
    assert (found["file_bytes"], found["without_head_bytes"]) == (12_104, 2_496)
    assert found["parts_bytes"] == {
        "header": 0, "codes": 2304, "statistics": 192, "values": 0, "head": 9608, "checksum": 0
    }  # fmt: skip
    source = tmp_path / "in"
    source.mkdir()
    save_file({"m.0.lora_A.weight": torch.randn(2, 8)}, source / "adapter_model.safetensors")
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    found = json.loads(quant("inspect", source, "--json"))
    assert found["parts_bytes"]["values"] == 64
    assert found["file_bytes"] == sum(p.stat().st_size for p in source.iterdir())


def test_a_plain_tensor_beside_coded_ones_has_a_quantizer_of_null(quant, tmp_path):
    w = torch.randn(3, 4)
    tensors = [LowbitTensor.quantised("a", w, quantizer="nf", bits=2), LowbitTensor.plain("b", w)]
    write_lowbit(tmp_path / "x.lowbit", Lowbit(header={}, tensors=tensors))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(quant("inspect", tmp_path / "x.lowbit", "--json"), parse_constant=refuse)
    assert [t["quantizer"] for t in found["tensors"]] == ["nf", None]


def test_wrong_input_is_one_line_and_exit_code_2(command, tmp_path):
    (tmp_path / "x.lowbit").write_bytes(b"PK\3\4" + bytes(40))
    (tmp_path / "x.bin").write_bytes(b"")
    for arguments, text in (
        (("inspect", tmp_path / "x.lowbit"), "expected a .lowbit file"),
        (("inspect", tmp_path), "found a folder"),
        (("inspect", tmp_path / "none.lowbit"), "no such file"),
        (("import", tmp_path / "x.bin", "-o", tmp_path / "y"), "expected its YAML as"),
        (("import", tmp_path, "-o", tmp_path / "y"), "expected a folder with adapter_config.json"),
        (("import", tmp_path / "x.bin", "--bits", 2, "-o", tmp_path / "y"), "expected no --bits"),
        (("import", tmp_path, "--width", 2, "-o", tmp_path / "y"), "expected no --width"),
        (("export", tmp_path / "x.lowbit", "--to", "peft", "-o", tmp_path / "y"), "expected a .lowbit file"),
        (("export", tmp_path / "x.lowbit", "--to", "zip", "-o", tmp_path / "y"), "petl"),
        (("inspekt", tmp_path / "x.lowbit"), "inspect"),
    ):
        done = command("quant.__main__", *arguments)
        assert done.returncode == 2
        assert text in done.stderr
        assert done.stderr.count("\n") == 1
        assert not done.stdout
    assert not (tmp_path / "y").exists()


def test_safetensors_into_a_folder_are_refused_by_the_folders_name(command, tmp_path):
    write_lowbit(tmp_path / "x.lowbit", Lowbit(header={}, tensors=[LowbitTensor.plain("a", torch.ones(2))]))
    done = command("quant.__main__", "export", tmp_path / "x.lowbit", "--to", "safetensors", "-o", tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}: expected a file to write, found a folder\n"


def test_what_a_header_has_no_place_for_is_said_with_its_file(command, released, tmp_path):
    path, config = released
    (tmp_path / "x.yaml").write_text(config.read_text() + "when: 2020-01-01\n")
    done = command("quant.__main__", "import", path, "--config", tmp_path / "x.yaml", "-o", tmp_path / "x.lowbit")
    assert done.returncode == 2
    assert done.stderr == f"error: {path}: expected plain data, found date\n"


def test_classes_of_another_kind_are_inspected(tmp_path):
    write_lowbit(tmp_path / "x.lowbit", Lowbit(header={"classes": 3}, tensors=[LowbitTensor.plain("a", torch.ones(2))]))
    assert contents(tmp_path / "x.lowbit").summary().endswith("lowbit version 1; float32")


def test_help_needs_no_torch():
    code = "import sys, quant.__main__\nprint([m for m in ('torch', 'numpy', 'pandas', 'yaml') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
