"""Linear probing: the head alone is trained, on the frozen features of the backbone."""

from __future__ import annotations

from train.methods import Method


def parameters(width: int, depth: int, dim: int = 0) -> int:
    """Zero: the head is not counted."""
    return 0


METHOD = Method(name="linear", title="Linear probe", parameters=parameters)
