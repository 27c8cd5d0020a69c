"""The balanced gauge of low-rank factors: one representative of all pairs with the same product.

B A = (B G^-1) (G A) for every invertible G, so what is normalised row by row in the factors depends on which pair
training happened to end at. The balanced pair B = U S^1/2, A = S^1/2 V^T of B A = U S V^T does not: it is the one of
least norm, both factors weigh the same, and its columns and rows are orthogonal.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from quant.fake import QuantLinear
from train.errors import TrainError
from train.methods._parts import LowRank


def balanced(model: nn.Module) -> nn.Module:
    """Copy of ``model`` with every pair of factors in the balanced gauge; its function is the same to rounding.

    Where singular values are equal, or zero, the pair is one of those that are balanced.

    Raises
    ------
    TrainError
        If there is no pair of factors without a nonlinearity between them, or its weights are stored in low bits.
    """
    model = copy.deepcopy(model)
    pairs = [m for m in model.modules() if isinstance(m, LowRank) and isinstance(m.act, nn.Identity)]
    if not pairs:
        raise TrainError(f"expected low-rank factors to balance, found none in {type(model).__name__}")
    for pair in pairs:
        if isinstance(pair.up, QuantLinear) or isinstance(pair.down, QuantLinear):
            raise TrainError("low-bit factors cannot be balanced: their codes would change, and the function with them")
        with torch.no_grad():
            up, down = balance(pair.up.weight, pair.down.weight)
            pair.up.weight.copy_(up)
            pair.down.weight.copy_(down)
    return model


def balance(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The balanced pair of B (outputs, r) and A (r, inputs), in float64; signs make B's largest entry in a column > 0.

    The product is never formed: B = Q_B R_B and A^T = Q_A R_A leave an r x r matrix to decompose.
    """
    q_b, r_b = torch.linalg.qr(up.double())
    q_a, r_a = torch.linalg.qr(down.double().T)
    # R_B R_A^T = U S V^T, so B A = (Q_B U) S (Q_A V)^T
    u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    left, right = q_b @ u, vt @ q_a.T
    largest = left.gather(0, left.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    signs = torch.where(largest < 0, -1.0, 1.0)
    # B = U S^1/2,   A = S^1/2 V^T
    balanced_up, balanced_down = left * signs * s.sqrt(), (signs * s.sqrt())[:, None] * right
    spare = up.shape[1] - len(s)  # a rank beyond the matrix's own
    return nn.functional.pad(balanced_up, (0, spare)), nn.functional.pad(balanced_down, (0, 0, 0, spare))
