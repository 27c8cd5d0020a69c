"""The notebooks run from their first cell to their last."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.enable_socket  # the kernel talks over the loopback
def test_explore_runs_on_a_run_of_the_small_study(done, monkeypatch):
    monkeypatch.setenv("RUN", str(done.run("adaptformer", 8, 1)))
    shown = shown_by("explore.ipynb", monkeypatch)
    assert sum("text/html" in data for data in shown) >= 3
    assert sum("image/png" in data for data in shown) == 2


@pytest.mark.slow
@pytest.mark.enable_socket
def test_a_language_model_is_measured(monkeypatch):
    monkeypatch.setenv("STEPS", "5")
    shown = shown_by("text.ipynb", monkeypatch)
    assert sum("text/html" in data for data in shown) >= 2
    assert sum("image/png" in data for data in shown) == 1


def shown_by(name, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    client.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    return [out.get("data", {}) for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
