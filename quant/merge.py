"""A pair of low-rank matrices made smaller: equal units merged, units dropped, the product truncated.

``down`` (h, d_in), ``up`` (d_out, h), a unit's output up[:, j] z_j with z = act(down x). What depends on data takes the
second moments of the hidden units, ``moments`` = E[z z'] (h, h), in which E||up z||^2 is quadratic. All in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant.errors import QuantError


def merge_parallel(down: Tensor, up: Tensor, tolerance: float = 1e-6) -> tuple[list[int], Tensor]:
    """Merge units whose rows of ``down`` are equal up to a positive factor; units without weights go too.

    The function through a ReLU (or through nothing) stays: relu(a r x) = a relu(r x) for a > 0, so u_j relu(a r x)
    joins u_i relu(r x) as u_i + a u_j. Equal means that what is left of a row is at most ``tolerance`` of its norm.

    Returns
    -------
    kept, up
        Indices of the units that stay, at least one, and their columns (d_out, kept).
    """
    rows, columns = down.detach().double(), up.detach().double().clone()
    norms = rows.norm(dim=1)
    kept: list[int] = []
    for j in range(len(rows)):
        if norms[j] == 0 or not bool(columns[:, j].any()):
            continue
        for i in kept:
            # the factor of the least-squares fit of row j by row i
            factor = (rows[i] @ rows[j]) / norms[i] ** 2
            if factor > 0 and (rows[j] - factor * rows[i]).norm() <= tolerance * norms[j]:
                columns[:, i] += factor * columns[:, j]
                break
        else:
            kept.append(j)
    kept = kept or [0]
    return kept, columns[:, kept].to(up.dtype)


def truncate(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The pair of that rank whose product is nearest to ``up @ down`` (Eckart and Young), its factors balanced."""
    # up = Q_1 R_1, down' = Q_2 R_2, R_1 R_2' = U S V': up down = (Q_1 U) S (Q_2 V)'
    q_up, r_up = torch.linalg.qr(up.detach().double())
    q_down, r_down = torch.linalg.qr(down.detach().double().T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    root = s[:rank].sqrt()
    new_up, new_down = q_up @ u[:, :rank] * root, root[:, None] * (vh[:rank] @ q_down.T)
    return new_down.to(down.dtype), new_up.to(up.dtype)


def contributions(moments: Tensor, up: Tensor) -> Tensor:
    """Root mean square of each unit's own output, ||up[:, j]|| sqrt(E z_j^2); (h,)."""
    _check(moments, up)
    return up.detach().double().norm(dim=0) * moments.double().diagonal().clamp_min(0).sqrt()


def output_spectrum(moments: Tensor, up: Tensor) -> Tensor:
    """Singular values of the outputs: roots of the eigenvalues of E[(up z)(up z)'], (h,), largest first."""
    _check(moments, up)
    value, vector = torch.linalg.eigh(moments.double())
    root = vector * value.clamp_min(0).sqrt()
    # the eigenvalues of U E U' are the squared singular values of U E^(1/2)
    return torch.linalg.svdvals(up.detach().double() @ root)


def eliminate(moments: Tensor, up: Tensor, size: int) -> tuple[list[int], Tensor]:
    """Take units away one by one until ``size`` are left; those that stay take over what they can.

    Each time the unit goes whose loss costs least in E||up z - up' z||^2 once the columns of the others are fitted anew
    (optimal brain surgeon, Hassibi and Stork 1993, for this quadratic). Units that repeat others cost nothing.

    Returns
    -------
    kept, up
        Indices of the units that stay, in order, and their new columns (d_out, size).

    Raises
    ------
    QuantError
        If the size is not from 1 to h.
    """
    _check(moments, up)
    h = up.shape[1]
    if not 1 <= size <= h:
        raise QuantError(f"expected a size from 1 to {h}, found {size}")
    m = moments.double()
    ridge = 1e-10 * float(m.diagonal().mean()) or 1.0
    inverse = torch.linalg.inv(m + ridge * torch.eye(h, dtype=m.dtype))
    columns, kept = up.detach().double().clone(), list(range(h))
    while len(kept) > size:
        diagonal = inverse.diagonal()[kept]
        # cost of unit j: ||u_j||^2 / [M^-1]_jj
        j = kept[int((columns[:, kept].square().sum(dim=0) / diagonal).argmin())]
        pivot = inverse[j] / inverse[j, j]
        # u_k <- u_k - u_j [M^-1]_jk / [M^-1]_jj; M^-1 <- that of the matrix without j
        columns -= columns[:, j, None] * pivot
        inverse = inverse - inverse[:, j, None] * pivot
        kept.remove(j)
    return kept, columns[:, kept].to(up.dtype)


def _check(moments: Tensor, up: Tensor) -> None:
    h = up.shape[1]
    if tuple(moments.shape) != (h, h):
        raise QuantError(f"expected moments of {h} hidden units, found shape {tuple(moments.shape)}")
