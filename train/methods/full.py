"""Full fine-tuning: every weight of the network is trained, nothing is inserted and nothing quantised."""

from __future__ import annotations

from train.methods import Method


def parameters(width: int, depth: int, dim: int = 0, *, patch: int = 16, img_size: int = 224) -> int:
    """Numbers of a plain ViT without its head: blocks, patch embedding, class token, positions and last norm."""
    block = 12 * width**2 + 13 * width
    tokens = (img_size // patch) ** 2 + 1
    return depth * block + (3 * patch**2 + 1) * width + width + tokens * width + 2 * width


METHOD = Method(name="full", title="Full fine-tuning", parameters=parameters, whole=True)
