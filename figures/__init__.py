"""Tables on disk and pictures of them; the lowest layer, which imports nothing of the others and never torch.

``figures.tables`` owns how a table is written and read, ``figures.command`` what all commands share,
``figures.style`` and ``figures.bands`` how a figure looks; every other file draws one figure. Importing the package
loads no pandas and no matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

_EXPORTS = {
    **dict.fromkeys(("Table", "TableError", "read_table", "read_tables", "write_tables"), "tables"),
    "save": "style",
}
_NOT_FIGURES = {"atomic", "bands", "command", "redraw", "style", "tables"}

__all__ = ["Table", "TableError", "names", "read_table", "read_tables", "save", "write_tables"]  # noqa: F822


def names() -> list[str]:
    """The figures there are: the names of their files, found without importing them."""
    files = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return sorted(name for name in files if not name.startswith("_") and name not in _NOT_FIGURES)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"figures.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'figures' has no attribute {name!r}")
