"""List the analyses: ``python -m analyses``."""

from __future__ import annotations

import ast
from pathlib import Path


def names() -> dict[str, str]:
    """Each analysis that is a command, with the first line of what it says of itself; nothing is imported."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        tree = ast.parse(path.read_text())
        is_command = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        if is_command:
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0].replace("``", "")
    return found


if __name__ == "__main__":
    for name, line in names().items():
        print(f"{name:12} {line}")
