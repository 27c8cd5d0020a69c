"""Weights of every kind of file: what was planted is reported, without a model, beside null and initialisation."""

from __future__ import annotations

import csv
import io
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from analyses.errors import AnalysisError
from analyses.gaussianity import ANALYSIS, Fits, findings
from analyses.options import Options
from analyses.weights import open_weights
from quant.lowbit import Lowbit, LowbitTensor, write_lowbit

OPTIONS = Options(quiet=True)
QUICK = Fits(distortion_bits=(1,), null_draws=3)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted() -> dict[str, torch.Tensor]:
    """A pair with units 1 and 3 the same but for a scale, a Laplace matrix, and what is no matrix."""
    down, up = normal(5, 60), normal(70, 5, seed=1)
    down[3], up[:, 3] = 2 * down[1], up[:, 1]
    laplace = torch.from_numpy(np.random.default_rng(0).laplace(size=(40, 50)).astype(np.float32))
    return {
        "a.down.weight": down,
        "a.up.weight": up,
        "laplace": laplace,
        "bias": normal(9),
        "steps": torch.ones(2, 2).int(),
    }


def tables_of(path, options=OPTIONS, spec=QUICK):
    opened, _ = open_weights([path], options)
    return ANALYSIS.compute(opened[0], options, spec, None)[0]


@pytest.fixture(params=["safetensors", "pth", "npz"])
def file(request, tmp_path):
    path = tmp_path / f"weights.{request.param}"
    if request.param == "safetensors":
        save_file(planted(), path)
    elif request.param == "pth":
        torch.save({"epoch": 3, "model": planted()}, path)
    else:
        np.savez(path, **{name: w.numpy() for name, w in planted().items()})
    return path


def test_what_was_planted_is_reported_of_every_format(file):
    found = tables_of(file)
    matrices = found["matrices"].set_index(found["matrices"].tensor.str.removeprefix("model."))
    assert list(matrices.index) == ["a.down.weight", "a.up.weight", "laplace"]
    assert matrices.best_law["laplace"] == "laplace"
    assert matrices.weights["laplace"] == 2000
    x = planted()["laplace"].double().numpy().ravel()
    centred = x - x.mean()
    assert matrices.excess_kurtosis["laplace"] == pytest.approx((centred**4).mean() / x.var() ** 2 - 3, rel=1e-6)
    assert matrices["skew"]["laplace"] == pytest.approx((centred**3).mean() / x.std() ** 3, rel=1e-5)
    assert matrices.w1_sigma["laplace"] > 2 * matrices.w1_sigma_null["laplace"]
    assert matrices.normal_delta_aic_nominal["laplace"] > 100
    assert matrices[["trained_share", "init_cosine", "w1_sigma_init"]].isna().all(axis=None)
    units = found["units"].set_index("side")
    assert units.dependent_pairs.to_dict() == {"down": 1, "up": 1, "both": 1}
    assert units.different_units["both"] == 4
    assert units.compared.eq("values").all()
    spectra = found["spectra"].set_index("kind")
    up, down = planted()["a.up.weight"], planted()["a.down.weight"]
    s = np.linalg.svd((up @ down).numpy(), compute_uv=False)
    p = s[s > 1e-4 * s[0]] / s.sum()
    assert spectra.effective_rank["product"] == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-4)
    assert spectra.rank_at_most["product"] == 5


def test_the_nominal_widths_are_those_of_normal_samples():
    rng = np.random.default_rng(1)
    found = np.array([(stats_of(rng.standard_normal(400))) for _ in range(600)])
    row = ANALYSIS.compute(held_of({"w": normal(20, 20)}), OPTIONS, QUICK, None)[0]["matrices"].iloc[0]
    assert row.skew_nominal_95 == pytest.approx(1.96 * found[:, 0].std(), rel=0.1)
    assert row.excess_kurtosis_nominal_95 == pytest.approx(1.96 * found[:, 1].std(), rel=0.15)


def stats_of(x: np.ndarray) -> tuple[float, float]:
    z = (x - x.mean()) / x.std()
    return (z**3).mean(), (z**4).mean() - 3


def held_of(tensors, **fields):
    from pathlib import Path

    from analyses.weights import Held

    return Held(path=Path("x"), label="x", kind="tensors", tensors=tensors, identity="0", **fields)


def test_memory_of_the_initialisation_by_hand():
    first, step = normal(30, 40), normal(30, 40, seed=1)
    held = held_of({"w": first + 0.5 * step}, initial={"w": first})
    row = ANALYSIS.compute(held, OPTIONS, QUICK, None)[0]["matrices"].iloc[0]
    assert row.init_cosine == pytest.approx(1 / math.sqrt(1.25), abs=0.02)
    assert row.trained_share == pytest.approx(0.2, abs=0.03)
    others = [
        abs(float(torch.cosine_similarity(normal(1200, seed=i), normal(1200, seed=900 + i), dim=0))) for i in range(200)
    ]
    assert row.init_cosine_null == pytest.approx(np.mean(others), rel=0.2)
    assert 0 < row.w1_sigma_init < 2 * row.w1_sigma_null


def test_a_large_matrix_is_fitted_on_a_part_of_it():
    spec = Fits(distortion_bits=(1,), null_draws=3, at_most=500)
    held = held_of({"w": normal(60, 50)}, initial={"w": normal(60, 50)})
    row = ANALYSIS.compute(held, OPTIONS, spec, None)[0]["matrices"].iloc[0]
    assert (row.weights, row.fitted_weights) == (3000, 500)
    assert row.w1_sigma == row.w1_sigma_init  # the same part of both
    assert row.w1_sigma_null > 0.02


def test_a_run_is_compared_with_its_initialisation_and_loads_no_data(done, monkeypatch):
    from train import build

    monkeypatch.setattr(build, "load_task", lambda *_: pytest.fail("the data were loaded"))
    path = done.run("adaptformer", 8, 32)
    found = tables_of(path)
    rows = found["matrices"].set_index("tensor")
    assert len(rows) == 12
    assert not rows.index.str.startswith("head").any()
    down = rows[rows.index.str.contains("down")]
    assert (down.init_cosine > 0.9).all()  # one epoch moves little
    assert down.best_law_init.eq("generalised_normal").all()  # nn.Linear draws uniform weights
    up = rows[rows.index.str.contains("up")]
    assert up.trained_share.eq(1).all()  # from zeros
    assert up.init_cosine.isna().all()
    trained = load_file(path / "trained.safetensors")["blocks.0.adapter.down.weight"]
    assert down["std"].iloc[0] == pytest.approx(float(trained.double().std()), rel=1e-9)
    assert set(found) == {"matrices", "histogram", "spectra", "spectrum", "units", "agreement"}


def test_codes_of_one_bit_have_units_and_no_laws(done, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "shipped.lowbit"
    shutil.copy(done.run("adaptformer", 8, 1) / "adapter.lowbit", file)
    said = command("analyses.gaussianity", file, "--out", tmp_path)
    assert said.returncode == 0, said.stderr
    assert "1 bit: two values a matrix" in said.stderr
    assert "effective rank of a product" in said.stderr
    rows = list(csv.DictReader(io.StringIO(said.stdout)))
    assert len(rows) == 12
    assert {(row["levels"], row["best_law"]) for row in rows} == {("2", "")}
    found = tables_of(file)
    assert "histogram" not in found
    assert found["units"].compared.eq("codes").all()
    assert (tmp_path / "figures" / "units.pdf").exists()
    assert (tmp_path / "figures" / "spectra.pdf").exists()
    assert not (tmp_path / "figures" / "weights.pdf").exists()


def test_the_paper_s_files_repeat_themselves(shared):
    """Decoded here by hand: bytes of the first matrix, its bits, their products; and what that means for the ranks."""
    place = shared / "petl_bin" / "models_bin" / "lora" / "cifar-bit1-dim32.bin"
    bits = np.unpackbits(np.frombuffer(place.read_bytes()[: 32 * 768 // 8], np.uint8), bitorder="little")
    signs = 2.0 * bits.reshape(32, 768) - 1
    cosines = np.abs((signs @ signs.T / 768)[np.triu_indices(32, 1)])
    held = open_weights([place], OPTIONS)[0][0]
    assert len(held.pairs()) == 24
    one = held_of(
        {n: held.tensors[n] for n in ("blocks.0.attn.qkv.lora_q.down.weight", "blocks.0.attn.qkv.lora_q.up.weight")},
        codes=held.codes,
    )
    found = ANALYSIS.compute(one, OPTIONS, QUICK, None)[0]
    row = found["units"].set_index("side").loc["down"]
    assert row.same_pairs == (cosines >= 0.9).sum() == 5
    assert row.dependent_pairs == (cosines >= row.threshold - 1e-9).sum()
    assert row.threshold == pytest.approx(4.06 / math.sqrt(768), rel=0.05)  # Phi(-4.06) is .05 / 496 / 4
    spectra = found["spectra"]
    assert spectra[spectra.kind == "product"].effective_rank.iloc[0] < 6 < spectra.effective_rank_null.min()
    assert (spectra[spectra.kind == "matrix"].above_edge >= 1).all()


def test_names_of_pairs():
    def pair(down, up):
        return {down: torch.ones(2, 6), up: torch.ones(5, 2)}

    tensors = {
        **pair("base.layers.0.q.lora_A.weight", "base.layers.0.q.lora_B.weight"),
        **pair("x.lora_A.default.weight", "x.lora_B.default.weight"),
        **pair("blocks.0.adapter.down.weight", "blocks.0.adapter.up.weight"),
        **pair("b.adapter_mlp.adapter_down.weight", "b.adapter_mlp.adapter_up.weight"),
        **pair("e.lora_embedding_A", "e.lora_embedding_B"),
        "mlp.down_proj.weight": torch.ones(2, 6),
        "mlp.up_proj.weight": torch.ones(6, 2),
        "y.down.weight": torch.ones(3, 6),
        "y.up.weight": torch.ones(6, 2),
    }
    found = held_of(tensors).pairs()
    assert list(found) == ["base.layers.0.q", "x", "blocks.0.adapter", "b.adapter_mlp", "e"]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_file({"w": normal(4, 4)}, tmp_path / name / "w.safetensors")
    opened, out = open_weights([tmp_path / "a" / "w.safetensors", tmp_path / "b" / "w.safetensors"], OPTIONS)
    assert [held.label for held in opened] == ["a/w", "b/w"]
    assert out.name == "analysis"
    with pytest.raises(AnalysisError, match="one name"):
        open_weights([tmp_path / "a" / "w.safetensors"] * 2, OPTIONS)


def test_the_backbone_that_training_began_with_is_its_initialisation(done, tmp_path):
    file = tmp_path / "own.safetensors"
    shutil.copy(done.run("full") / "trained.safetensors", file)
    own = open_weights([file], Options(quiet=True, backbone="vit_tiny32"))[0][0]
    assert "blocks.0.mlp.fc1.weight" in own.initial
    assert not own.run


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("x.pth", b"PK nothing", "expected tensors alone"),
        ("x.safetensors", b"\x08\0\0\0\0\0\0\0{}", "expected tensors alone"),
        ("x.npz", b"PK\x03\x04", "expected tensors alone"),
        ("x.bin", b"\0" * 9, "expected its YAML"),
        ("x.lowbit", b"LOWB", "truncated"),
        ("x.txt", b"hello", "weights are a run folder"),
        (".", b"", "without run.json or adapter_config.json"),
        ("nowhere.pth", None, "no such checkpoint"),
    ],
)
def test_bad_files_are_one_line(command, tmp_path, name, data, text):
    if data:
        (tmp_path / name).write_bytes(data)
    said = command("analyses.gaussianity", tmp_path / name, "--quiet")
    assert said.returncode == 2
    assert text in said.stderr
    assert said.stderr.count("\n") == 1


@pytest.mark.parametrize("dim", ["x", [5], None])
def test_a_dim_that_is_no_number_is_left_out(tmp_path, dim):
    tensors = [LowbitTensor.plain("a.down.weight", torch.randn(2, 3))]
    write_lowbit(tmp_path / "x.lowbit", Lowbit(header={"dim": dim}, tensors=tensors))
    (held,), _ = open_weights([tmp_path / "x.lowbit"], OPTIONS)
    assert held.dim == 0


def test_tensors_that_cannot_be_fitted_are_named(tmp_path):
    save_file({"w": torch.full((3, 3), math.nan)}, tmp_path / "nan.safetensors")
    with pytest.raises(AnalysisError, match="w has values that are not finite"):
        open_weights([tmp_path / "nan.safetensors"], OPTIONS)
    save_file({"w": torch.ones(3)}, tmp_path / "vector.safetensors")
    with pytest.raises(AnalysisError, match="holds no matrix"):
        open_weights([tmp_path / "vector.safetensors"], OPTIONS)
    constant = tables_of_constant()
    assert constant.best_law.iloc[0] == ""
    assert math.isnan(constant.w1_sigma.iloc[0])


def tables_of_constant():
    found = ANALYSIS.compute(held_of({"w": torch.ones(4, 4)}), OPTIONS, QUICK, None)[0]
    assert findings(found)
    return found["matrices"]
