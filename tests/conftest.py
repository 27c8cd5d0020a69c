"""What every test is held to: torch's globals stay as they were, and no test reaches a network."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess

import pytest

pytest_plugins = ["study_fixture"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process a core already

SHARED = Path(__file__).resolve().parents[2] / "shared"


def torch_globals() -> dict[str, object]:
    import torch

    return {
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "gradients enabled": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "flash attention": torch.backends.cuda.flash_sdp_enabled(),
        "default device": str(torch.get_default_device()),
    }


@pytest.fixture(autouse=True)
def torch_globals_stay():
    """Fail a test that leaves one of torch's global settings changed."""
    before = torch_globals()
    yield
    after = torch_globals()
    changed = {k: (before[k], after[k]) for k in before if before[k] != after[k]}
    assert not changed, f"the test changed torch's globals: {changed}"


@pytest.fixture
def command(monkeypatch, capsys):
    """Call ``python -m MODULE ARGUMENTS`` without a new interpreter; gives its exit code, stdout and stderr."""
    from figures.command import run

    def call(module: str, *arguments: object) -> CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            run(import_module(module).main, prog=f"python -m {module}")
        return CompletedProcess(sys.argv, int(left.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository; a test that needs it skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("reference data (../shared) is not on this machine")
    return SHARED


@pytest.fixture
def killed_at(monkeypatch):
    """``killed_at(n)``: interrupted at the n-th point, those before it stored; gives the list of points asked for."""
    from landscape import workers
    from landscape.probe import Probe

    rows = Probe.rows

    def arm(n):
        asked = []

        def counted(probe, point):
            asked.append(point)
            if len(asked) == n:
                raise KeyboardInterrupt
            return rows(probe, point)

        monkeypatch.setattr(workers, "SHARD_SECONDS", 0.0)
        monkeypatch.setattr(Probe, "rows", counted)
        return asked

    return arm
