"""The page of the quantisers is what its program writes."""

from __future__ import annotations

from pathlib import Path

from quant.quantizers import names
from quant.quantizers.__main__ import page, tables

PAGE = Path(__file__).resolve().parents[2] / "docs" / "quantizers.md"


def test_the_page_is_what_the_program_writes():
    text = PAGE.read_text()
    assert page(text) == text, "run: python -m quant.quantizers docs/quantizers.md"


def test_the_tables_say_where_laws_hold():
    rows = {line.split(" | ")[0]: line.split(" | ")[1:] for line in tables().splitlines() if line.startswith("| `")}
    laws = {name.strip("| `"): [cell.strip(" |") for cell in cells] for name, cells in rows.items()}
    assert set(laws) == set(names())
    assert laws["released"] == ["1-8", "1-7", "1-4", "1-8", "1-8", "1-7"]
    assert laws["pq"][0] == "-"
    assert laws["bwn"] == ["1", "1", "1", "1", "-", "1"]
