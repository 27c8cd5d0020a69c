"""Every command: its help needs no torch, and names what it takes."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMANDS = [
    "train", "train.tasks", "train.pretrain", "figures", "analyses.flatness", "analyses.surface", "analyses.noise",
    "analyses.gaussianity", "analyses.tradeoff", "analyses.transfer", "analyses.study", "analyses.publish",
]  # fmt: skip
HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as stop:
    print("exit", stop.code)
print("loaded", sorted({"torch", "timm", "pandas", "matplotlib", "scipy"} & set(sys.modules)))
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavy(command):
    found = subprocess.run([sys.executable, "-c", HELP, command], capture_output=True, text=True, check=True)
    assert "usage:" in found.stdout
    assert "exit 0" in found.stdout
    assert "loaded []" in found.stdout


def test_the_analyses_are_listed():
    found = subprocess.run([sys.executable, "-m", "analyses"], capture_output=True, text=True, check=True)
    for command in COMMANDS:
        package, _, name = command.partition(".")
        if package == "analyses":
            assert name in found.stdout
