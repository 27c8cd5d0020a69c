"""Every command: its help needs no torch, and names what it takes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

COMMANDS = [
    "train", "train.tasks", "train.pretrain", "figures", "analyses.flatness", "analyses.surface", "analyses.noise",
    "analyses.gaussianity", "analyses.tradeoff", "analyses.bits", "analyses.transfer", "analyses.study",
    "analyses.publish", "analyses.connectivity", "analyses.trajectory", "analyses.dimension", "analyses.precision",
    "analyses.survive", "analyses.collapse",
]  # fmt: skip
HELP = """
import contextlib, io, json, runpy, sys
found = {}
for command in sys.argv[1:]:
    sys.argv, said, code = [command, "--help"], io.StringIO(), None
    with contextlib.redirect_stdout(said):
        try:
            runpy.run_module(command, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            code = stop.code
    loaded = sorted({"torch", "timm", "pandas", "matplotlib", "scipy"} & set(sys.modules))
    found[command] = {"said": said.getvalue(), "code": code, "loaded": loaded}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def helps() -> dict:
    """What each command says to --help, and what is loaded by then, all in one new interpreter."""
    words = [sys.executable, "-c", HELP, *COMMANDS]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavy(helps, command):
    found = helps[command]
    assert "usage:" in found["said"]
    assert found["code"] == 0
    assert found["loaded"] == []


def test_the_analyses_are_listed():
    found = subprocess.run([sys.executable, "-m", "analyses"], capture_output=True, text=True, check=True)
    for command in COMMANDS:
        package, _, name = command.partition(".")
        if package == "analyses":
            assert name in found.stdout
