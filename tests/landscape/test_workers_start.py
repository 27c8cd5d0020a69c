"""Workers that cannot start, or cannot be reached, are one line that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from landscape_nets import Mlp, data, seeded

from landscape import LandscapeError, Objective, Space, draw, grid, line

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent

UNGUARDED = """
from landscape_nets import Mlp, data, seeded
from landscape import Objective, Space, draw, grid, line
print("began", flush=True)
model = seeded(Mlp)
objective, space = Objective(model, *data(Mlp)), Space(model, ["up.weight"])
line(objective, space, draw(space, 0), grid(1.0, 5), workers="2")
"""


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_of_it_at_its_first_start(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    path = f"{ROOT}{os.pathsep}{HERE}"
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1
    assert done.stdout.count("began") <= 3, "itself, and each worker once"
    last = done.stderr.strip().splitlines()[-1]
    assert '`if __name__ == "__main__":`' in last
    assert "bootstrapping" not in done.stderr


@pytest.mark.parametrize("wrong", ["rayx", "ray:", "ray://", "ray://a b", "1 ", "00"])
def test_what_names_no_workers_is_refused_before_anything_is_measured(wrong, monkeypatch):
    model = seeded(Mlp)
    objective, space = Objective(model, *data(Mlp)), Space(model, ["up.weight"])
    monkeypatch.setattr(Objective, "_pass", lambda self: pytest.fail("something was measured"))
    with pytest.raises(LandscapeError, match="expected workers"):
        line(objective, space, draw(space, 0), grid(1.0, 5), workers=wrong)
