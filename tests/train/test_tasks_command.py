"""``python -m train.tasks``: what it prints, what it writes, how it fails."""

from __future__ import annotations

import json
import runpy
import sys

import numpy as np
import pytest
from PIL import Image

from train.tasks import load


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Run the command in an empty folder, as ``python -m`` does; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.tasks", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            runpy.run_module("train.tasks", run_name="__main__")
        return left.value.code, *capfd.readouterr()

    return run


def test_it_prints_the_task_and_writes_the_sheet(command, tmp_path):
    code, out, err = command("digits", "--backbone", "random:vit_tiny32")
    assert code == 0, err
    for text in (load("digits").fingerprint, "train 800, val 200, test 797", "resize to 32x32 (bicubic", "0.308"):
        assert text in out
    with Image.open(tmp_path / "digits.png") as sheet:
        assert sheet.size[1] > 10 * 64


def test_a_folder_is_decoded_at_the_backbones_size(command, tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "f" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.full((5 + i, 9, 3), i, np.uint8)).save(tmp_path / "f" / name / f"{i}.png")
    code, out, err = command(
        "folder:f", "--train-size", 10, "--backbone", "random:vit_tiny32", "-o", "s.png", "--json"
    )  # fmt: skip
    assert code == 0, err
    rows = json.loads(out)
    assert [r["class"] for r in rows] == ["ant", "bee"]
    assert [sum(r[part] for r in rows) for part in ("train", "val", "test")] == [8, 2, 10]
    assert "32x32" in err
    assert (tmp_path / "s.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("conting",), "nearest: counting"),
        (("folder:nowhere", "--backbone", "random:vit_tiny32"), "no such folder"),
        (("digits", "--backbone", "random:vit_tiny"), "no architecture 'vit_tiny'"),
        (("digits", "--backbone", "random:vit_tiny32", "-o", "no/such/x.png"), "no such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, arguments, said):
    code, _, err = command(*arguments)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
