"""What filter normalisation is made of: which entries share a norm, and entries given the norms of others.

Li et al. 2018 (Visualizing the Loss Landscape of Neural Nets, section 4): d_i <- d_i / ||d_i|| * ||w_i|| for every
filter i. Departures: zero filters give zero, tokens count as filters each, and what has no rows follows the stated
:class:`landscape.space.Policy` (NUMERICS 7).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from landscape.errors import LandscapeError, nearest
from landscape.space import half

if TYPE_CHECKING:
    from landscape.space import Space

Normalisation = Literal["filter", "layer", "element"]
NORMALISATIONS = ("filter", "layer", "element")


def check_known(normalisation: str) -> None:
    """Whether there is such a normalisation.

    Raises
    ------
    LandscapeError
        If not; says which there are.
    """
    if normalisation not in NORMALISATIONS:
        raise LandscapeError(
            f"expected a normalisation among {', '.join(NORMALISATIONS)}, found {normalisation!r}"
            f"{nearest(normalisation, NORMALISATIONS)}"
        )


def unit_of(space: Space, name: str, normalisation: str) -> str:
    """What gets a norm of its own in this tensor: row, token, whole, element; or zero."""
    role = space.roles[name]
    if role == "vector":
        return {"zero": "zero", "vector": "whole", "element": "element"}[space.policy.bias_and_norm]
    if normalisation == "filter":
        return "token" if role == "token" else "row"
    return "whole" if normalisation == "layer" else "element"


def rows_of(tensor: Tensor, unit: str) -> Tensor:
    """(G, entries): the first axis counts filters, the last one holds a token's entries."""
    if unit == "whole" or tensor.ndim == 0:
        return tensor.reshape(1, -1)
    if unit == "token":
        return tensor.reshape(-1, tensor.shape[-1])
    return tensor.reshape(tensor.shape[0], tensor[:1].numel())


def normalised(values: Tensor, weight: Tensor, unit: str) -> Tensor:
    """Values with the norms of the weight, unit by unit; times |w| entry by entry for ``element``."""
    if unit == "zero":
        return torch.zeros_like(weight)
    if unit == "element":
        return values * weight.abs()
    if not weight.numel():
        return values
    return with_norms(rows_of(values, unit), rows_of(weight, unit).norm(dim=1, keepdim=True)).reshape(weight.shape)


def with_norms(rows: Tensor, norms: Tensor) -> Tensor:
    """Rows (G, entries) scaled to these norms (G, 1); a row of zeros stays."""
    return rows * quotient(norms, rows.norm(dim=1, keepdim=True))


def quotient(a: Tensor, b: Tensor) -> Tensor:
    """The elements a / b, zero where b is not positive."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)


def gaussian(seed: int, name: str, like: Tensor) -> Tensor:
    """Standard normal noise of (seed, name), the same on every device; drawn in float32, returned in float64."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(like.shape, generator=generator, dtype=torch.float32, device="cpu").double()


def exact(tensor: Tensor) -> Tensor:
    """On the processor in float64, where norms are taken (not every device has it)."""
    return tensor.detach().cpu().double()


def like_weight(values: Tensor, weight: Tensor) -> Tensor:
    """Values in the weight's dtype, float32 for a half one, and on its device."""
    return values.to(torch.float32 if half(weight) else weight.dtype).to(weight.device)
