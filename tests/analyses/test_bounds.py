"""Settings that nothing can be measured with: one line and exit code 2, before a checkpoint is so much as opened."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from analyses.command import _fewer, _images, _there
from analyses.options import Options

WRONG = [
    ("surface", "--samples", "-5"),
    ("surface", "--samples", "0"),
    ("surface", "--batch-size", "0"),
    ("surface", "--points", "4"),
    ("surface", "--points", "1"),
    ("surface", "--extent", "0"),
    ("surface", "--extent", "nan"),
    ("surface", "--error", "-1"),
    ("surface", "--threads", "0"),
    ("noise", "--threads", "-3"),
    ("noise", "--draws", "0"),
    ("noise", "--levels", "inf"),
    ("flatness", "--directions", "0"),
    ("flatness", "--directions", "-1"),
    ("flatness", "--points", "10"),
    ("flatness", "--extent", "inf"),
    ("flatness", "--rise-se", "0"),
    ("connectivity", "--plane-points", "4"),
    ("connectivity", "--points", "1"),
    ("connectivity", "--degree", "1"),
    ("connectivity", "--steps", "-3"),
    ("connectivity", "--lr", "0"),
    ("connectivity", "--lr", "nan"),
    ("trajectory", "--points", "4"),
    ("trajectory", "--points", "1"),
    ("doctor", "--factor", "0"),
    ("doctor", "--factor", "nan"),
    ("doctor", "--extent", "nan"),
    ("doctor", "--extent", "0"),
    ("doctor", "--extent", "inf"),
]


@pytest.mark.parametrize(("analysis", "flag", "value"), WRONG)
def test_a_setting_out_of_its_range_is_one_line(command, tmp_path, analysis, flag, value):
    paths = (tmp_path / f"no such run {i}" for i in range(3))  # connectivity and trajectory take several
    done = command(f"analyses.{analysis}", *paths, flag, value)
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr.startswith(f"error: expected {flag} to be ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("workers", ["0", "-1", "rayx", "two"])
def test_workers_that_there_are_none_of_are_one_line(command, tmp_path, workers):
    done = command("analyses.surface", tmp_path / "no such run", f"--workers={workers}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: expected workers to be a number from 1")
    assert done.stderr.count("\n") == 1


def test_more_samples_than_there_are_is_said_with_the_true_number():
    sizes = {"train": 800, "test": 200}
    checkpoint = SimpleNamespace(task=SimpleNamespace(name="digits", labels=lambda split: [0] * sizes[split]))
    assert _there(_images([checkpoint]), Options(samples=99999)).samples == 800
    (line,) = _fewer(_images([checkpoint]), Options(samples=99999))
    assert line.startswith("digits has 800 training and 200 test images: 99999 of a split")
    assert _there(_images([checkpoint]), Options(samples=200)).samples == 200
    assert _fewer(_images([checkpoint]), Options(samples=200)) == []
    assert _fewer(_images([SimpleNamespace()]), Options(samples=99999)) == []
