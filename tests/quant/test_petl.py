"""The paper's files: read and written as PAPER 1.4 says, literally, and the released ones byte for byte."""

from __future__ import annotations

import math
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from quant.codebooks import released
from quant.errors import QuantError
from quant.lowbit import Lowbit, LowbitTensor, from_bytes, read_lowbit, to_bytes, write_lowbit
from quant.petl import config_beside, petl_bytes, petl_config, read_petl, write_petl

CONFIG = {
    "backbone": "vit_tiny32", "bit": 2, "dataset": "dmlab", "dim": 4, "method": "lora", "num_class": 6, "scale": 10.0,
}  # fmt: skip
BLOCKS, WIDTH = 2, 16


def order(config: dict) -> list[tuple[str, int, int]]:
    """Name, rows and columns of every low-bit matrix in the order of the file, head left out."""
    h, names = config["dim"], []
    for i in range(BLOCKS if config["bit"] < 32 else 0):
        if config["method"].startswith("adaptformer"):
            names += [(f"blocks.{i}.adapter.down.weight", h, WIDTH), (f"blocks.{i}.adapter.up.weight", WIDTH, h)]
        else:
            for which in ("lora_q", "lora_v"):
                names.append((f"blocks.{i}.attn.qkv.{which}.down.weight", h, WIDTH))
                names.append((f"blocks.{i}.attn.qkv.{which}.up.weight", WIDTH, h))
    return names


def literal(config: dict, seed: int = 0) -> tuple[bytes, dict[str, np.ndarray]]:
    """A file made as PAPER 1.4 says, a weight at a time, and the values that it stands for."""
    rng, data, values = np.random.default_rng(seed), b"", {}
    classes = config["num_class"]
    layers = [(*x, config["bit"]) for x in order(config)]
    if config["method"].endswith("-bihead"):
        layers.append(("head.weight", classes, WIDTH, 1))
    for name, rows, columns, bits in layers:
        codes = rng.integers(0, 2**bits, rows * columns)
        mean, std = (float(np.float32(x)) for x in (rng.normal(), rng.uniform(0.1, 1)))
        per = 8 // bits
        for at in range(0, len(codes), per):
            byte = 0
            for i in range(per):
                byte += int(codes[at + i]) * (2**bits) ** i
            data += byte.to_bytes(1, "big")
        data += struct.pack("f", mean) + struct.pack("f", std)
        book = np.float32(released(bits).values)
        values[name] = (book[codes] * np.float32(std) + np.float32(mean)).reshape(rows, columns)
    if not config["method"].endswith("-bihead"):
        values["head.weight"] = rng.normal(size=(classes, WIDTH)).astype("f")
        values["head.bias"] = rng.normal(size=classes).astype("f")
        data += values["head.weight"].tobytes() + values["head.bias"].tobytes()
    return data, values


def files(folder, data: bytes, config: dict):
    (folder / "x.bin").write_bytes(data)
    (folder / "x.yaml").write_text(yaml.safe_dump(config))
    return folder / "x.bin", folder / "x.yaml"


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 32])
@pytest.mark.parametrize("method", ["adaptformer", "lora", "adaptformer-bihead", "lora-bihead"])
def test_the_format_of_the_paper_both_ways(tmp_path, method, bits):
    config = {**CONFIG, "method": method, "bit": bits, "dim": 3, "scale": 0.1}
    data, values = literal(config)
    path, yaml_path = files(tmp_path, data, config)
    write_lowbit(tmp_path / "x.lowbit", read_petl(path, yaml_path, blocks=BLOCKS, width=WIDTH))
    back = read_lowbit(tmp_path / "x.lowbit")
    assert [t.name for t in back.tensors] == list(values)
    for t in back.tensors:
        np.testing.assert_array_equal(t.dense().numpy(), values[t.name])
        assert t.quantizer in ("released", None)
    written, described = write_petl(tmp_path / "out", back)
    assert written.name == f"dmlab-bit{bits}-dim3.bin"
    assert written.read_bytes() == data
    assert yaml.safe_load(described.read_text()) == config


def test_the_released_files_come_back_byte_for_byte(tmp_path, shared):
    """All sixteen; 24 matrices take 768 h / 8 + 8 bytes each (PAPER 1.4), the imported file at most 64 more."""
    paths = sorted((shared / "petl_bin" / "models_bin").glob("*/*.bin"))
    assert len(paths) == 16
    for path in paths:
        config = config_beside(path)
        lowbit = read_petl(path, config)
        data = to_bytes(lowbit, streams=False)
        write_lowbit(tmp_path / "x.lowbit", lowbit, streams=False)
        out, described = write_petl(tmp_path / path.parent.name, read_lowbit(tmp_path / "x.lowbit"))
        assert out.name == path.name
        assert out.read_bytes() == path.read_bytes()
        assert yaml.safe_load(described.read_text()) == yaml.safe_load(config.read_text())
        assert len(data) <= path.stat().st_size + 64
        if path.parent.name == "adaptformer" and "dim1" in path.name:
            assert len(to_bytes(lowbit.without_head(), streams=False)) <= 2496 + 64


def test_the_papers_codes_in_a_file_of_ours_with_the_names_of_a_hundred_classes(shared):
    """Statistics of two bytes, the backbone's hash, class names: 11,750 bytes, against 12,104 without any of it."""
    path = shared / "petl_bin" / "models_bin" / "adaptformer-bihead" / "cifar-bit1-dim1.bin"
    classes = sorted(p.name.split(".")[0] for p in (shared / "realdata" / "cifar100" / "test").glob("*.jpg"))
    assert len(classes) == 100
    imported = read_petl(path, config_beside(path))
    tensors = [
        replace(t, quantizer="gaussian_l1/f16", statistics=t.statistics.half().float()) for t in imported.tensors
    ]
    own = {
        "quantizer": "gaussian_l1/f16", "inputs": "backbone", "img_size": 224, "task": "folder:cifar100",
        "classes": classes, "backbone_hash": "".join(f"{i * 37 % 256:02x}" for i in range(16)),
    }  # fmt: skip
    data = to_bytes(Lowbit(header={**imported.header, **own}, tensors=tensors))
    assert len(data) <= 11_750
    assert from_bytes(data).header["classes"] == classes


def test_a_released_file_against_a_literal_decoding(shared):
    folder = shared / "petl_bin"
    path = folder / "models_bin" / "lora-bihead" / "dsprites_ori-bit1-dim1.bin"
    lowbit = read_petl(path, config_beside(path))
    data = path.read_bytes()
    assert lowbit.tensors[3].name == "blocks.0.attn.qkv.lora_v.up.weight"
    at = 3 * (96 + 8)
    mean, std = struct.unpack_from("<2f", data, at + 96)
    signs = [1 if data[at + i // 8] >> i % 8 & 1 else -1 for i in range(768)]
    expected = np.float32(signs) * np.float32(0.6744897501960817) * np.float32(std) + np.float32(mean)
    np.testing.assert_array_equal(lowbit.tensors[3].dense().numpy().reshape(-1), expected)
    assert lowbit.tensors[-1].shape == (16, 768)


def test_blocks_and_width_come_from_the_backbones_name(tmp_path):
    for name, blocks, width in (("vit_tiny_patch16_224", 12, 192), ("vit_large_patch16_224_in21k", 24, 1024)):
        size = blocks * 2 * (width * 8 // 8 + 8) + 4 * 2 * (width + 1)
        config = {**CONFIG, "backbone": name, "bit": 1, "dim": 8, "method": "adaptformer", "num_class": 2}
        lowbit = read_petl(*files(tmp_path, bytes(size), config))
        assert len(lowbit.tensors) == 2 * blocks + 2
        assert lowbit.tensors[0].shape == (8, width)


def test_further_fields_of_a_yaml_survive(tmp_path):
    config = {**CONFIG, "seed": 42, "note": None}
    lowbit = read_petl(*files(tmp_path, literal(config)[0], config), blocks=BLOCKS, width=WIDTH)
    assert petl_config(lowbit) == config
    write_lowbit(tmp_path / "x", lowbit)
    assert petl_config(read_lowbit(tmp_path / "x")) == config


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"bit": 3}, "expected bit to be one of 1, 2, 4, 8, 32, found 3"),
        ({"bit": True}, "expected bit to be"),
        ({"dim": 0}, "number above 0, found 0"),
        ({"scale": "big"}, "expected scale to be"),
        ({"scale": math.nan}, "expected scale to be"),
        ({"scale": math.inf}, "expected scale to be a number above 0, found inf"),
        ({"dim": 1.5}, "expected dim to be a whole number above 0, found 1.5"),
        ({"method": "lora-bi"}, "unknown method 'lora-bi'.*nearest: lora"),
        ({"backbone": "resnet50"}, "--blocks and --width; found 'resnet50'"),
        ({"num_class": 7}, "expected [0-9]+ bytes by its YAML"),
        ({"dataset": None}, "expected dataset to be text"),
    ],
)
def test_a_wrong_yaml_is_refused(tmp_path, change, text):
    paths = files(tmp_path, literal(CONFIG)[0], {**CONFIG, **change})
    sizes = {} if "backbone" in change else {"blocks": BLOCKS, "width": WIDTH}
    with pytest.raises(QuantError, match=text) as caught:
        read_petl(*paths, **sizes)
    assert "\n" not in str(caught.value)


def test_no_yaml_and_half_a_yaml_are_refused(tmp_path):
    path, config = files(tmp_path, literal(CONFIG)[0], {})
    for text in ("- 1", "a: [", "bit: 1", "\x00"):
        config.write_text(text)
        with pytest.raises(QuantError, match=r"x\.yaml: expected"):
            read_petl(path, config, blocks=BLOCKS, width=WIDTH)
    config.unlink()
    with pytest.raises(QuantError, match=r"expected its YAML as .*x\.yaml or given by --config"):
        config_beside(path)


def test_every_truncation_is_refused(tmp_path):
    data, _ = literal(CONFIG)
    path, config = files(tmp_path, data, CONFIG)
    for cut in (data[: len(data) // 2], data[:-1], data + b"\0", b""):
        path.write_bytes(cut)
        with pytest.raises(QuantError, match=rf"x\.bin: expected {len(data)} bytes by its YAML"):
            read_petl(path, config, blocks=BLOCKS, width=WIDTH)
    path.write_bytes(struct.pack("<f", math.nan) * (len(data) // 4))
    with pytest.raises(QuantError, match=r"x\.bin: "):
        read_petl(path, config, blocks=BLOCKS, width=WIDTH)


def test_codes_that_fill_no_whole_bytes_are_refused(tmp_path):
    """PAPER 1.4: the last partial byte is never written, and read back as the mean without a word."""
    config = {**CONFIG, "bit": 1, "dim": 1}
    with pytest.raises(QuantError, match="15 codes of 1 bits fill no whole bytes"):
        read_petl(*files(tmp_path, b"", config), blocks=1, width=15)


def test_what_the_paper_has_no_place_for_is_refused(tmp_path):
    config = {**CONFIG, "bit": 1}
    good = read_petl(*files(tmp_path, literal(config)[0], config), blocks=BLOCKS, width=WIDTH)
    w = torch.randn(4, WIDTH)
    first = good.tensors[0].name

    def head(bits: int) -> LowbitTensor:
        return LowbitTensor.quantised("head.weight", torch.randn(6, WIDTH), quantizer="released", bits=bits)

    for header, tensors, text in (
        ({**good.header, "method": "convpass"}, good.tensors, "unknown method"),
        ({**good.header, "task": None}, good.tensors, "expected task"),
        ({**good.header, "bits": "1"}, good.tensors, "expected bit to be a whole number"),
        ({**good.header, "petl": 5}, good.tensors, "expected other fields of the YAML"),
        (good.header, good.tensors[:-2], "head.weight"),
        (good.header, good.tensors[1:], "found others"),
        ({**good.header, "dim": 5}, good.tensors, "found others"),
        (good.header, [LowbitTensor.plain(first, w), *good.tensors[1:]], "found others"),
        (
            good.header,
            [LowbitTensor.quantised(first, w, quantizer="gaussian_l2", bits=1), *good.tensors[1:]],
            "'released' alone, or of equal values; found 'gaussian_l2' at 1 bits",
        ),
        (good.header, [LowbitTensor.plain(first, w), *good.tensors[1:]], rf"of {first} expected .* at 1 bits, found"),
        (good.header, good.tensors[:-1], "32-bit heads with bias, found no head.bias"),
        (good.header, [*good.tensors[:-2], head(1), good.tensors[-1]], "1-bit heads without bias, found head.bias"),
        (good.header, [*good.tensors[:-2], head(3), good.tensors[-1]], "heads of 1 or 32 bits, found .* at 3 bits"),
    ):
        with pytest.raises(QuantError, match=text):
            petl_bytes(Lowbit(header=header, tensors=tensors))


def test_codes_whose_values_are_the_papers_are_written_whatever_their_quantiser(tmp_path):
    """At 1 bit ``gaussian_l1`` is ``released`` to the last bit of a float32, and at 8 bits it is not."""
    config = {**CONFIG, "bit": 1}
    good = read_petl(*files(tmp_path, literal(config)[0], config), blocks=BLOCKS, width=WIDTH)
    for quantizer in ("gaussian_l1", "gaussian_l1/f16"):
        own = [
            LowbitTensor.quantised(t.name, torch.randn(t.shape), quantizer=quantizer, bits=1) if t.bits == 1 else t
            for t in good.tensors
        ]
        path, described = write_petl(tmp_path / quantizer, Lowbit(header=good.header, tensors=own))
        back = read_petl(path, described, blocks=BLOCKS, width=WIDTH)
        for before, after in zip(own, back.tensors, strict=True):
            assert torch.equal(before.dense(), after.dense())
    config = {**CONFIG, "bit": 8}
    good = read_petl(*files(tmp_path, literal(config)[0], config), blocks=BLOCKS, width=WIDTH)
    for quantizer in ("gaussian_l1", "gaussian_l1/row", "kmeans", "ecu", "nf"):
        first = LowbitTensor.quantised(good.tensors[0].name, torch.randn(4, WIDTH), quantizer=quantizer, bits=8)
        with pytest.raises(QuantError, match=f"found '{quantizer}' at 8 bits"):
            petl_bytes(Lowbit(header=good.header, tensors=[first, *good.tensors[1:]]))
