"""The notebook runs from its first cell to its last on a run of the small study."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.enable_socket  # the kernel talks over the loopback
def test_the_notebook_runs(done, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("RUN", str(done.run("adaptformer", 8, 1)))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "notebooks" / "explore.ipynb", as_version=4)
    client.NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    shown = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert sum("text/html" in out.get("data", {}) for out in shown) >= 3
    assert sum("image/png" in out.get("data", {}) for out in shown) == 2
