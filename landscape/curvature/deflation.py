"""Whether a search left out pairs: a few steps from another start at what is left of the operator.

One Krylov space holds one vector of a multiple eigenvalue, so all residuals may be small while a copy is missing. A
start orthogonal to what was found goes to the outermost of the rest; it is beyond the worst of the found pairs within
a few steps where such a copy exists. P parameters, k found pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from landscape.curvature.basis import Floats, inner, memory_for
from landscape.curvature.lanczos import End, Lanczos, key, ritz
from landscape.curvature.operator import Operator

# Of the products that the search took, and at least: what the check takes. On operators of 200,000 entries with exact
# and near copies among outliers above narrow, power-law and even spectra, 2 to 6 were enough after 16 to 47.
SHARE, LEAST = 1 / 4, 4


def steps_after(products: int) -> int:
    """How many products a search of so many is checked with."""
    return max(LEAST, round(SHARE * products))


def left_out(
    operator: Operator,
    values: Floats,
    vectors: Tensor,
    *,
    end: End,
    within: float,
    steps: int,
    budget: int,
    seed: int,
    memory_bytes: int | None,
) -> tuple[Tensor | None, int]:
    """A unit vector (1, P), orthogonal to the found, of a better eigenvalue than their last; None if none shows.

    Parameters
    ----------
    operator
        Open.
    values, vectors
        (k,) and (k, P), the best first.
    within
        Better means by more than this; the vector's residual is brought below a quarter of it while the budget lasts.
    steps, budget
        Products until a better one has to show, and in all.
    seed
        Of the start, which must not be that of the search.
    memory_bytes
        As :func:`.top_eigenvalues` takes it.

    Returns
    -------
    tuple
        The vector or None, and the products taken.
    """
    with _Deflated(operator, vectors, float(values[-1])) as rest:
        capacity = memory_for(rest, min(rest.size, budget + 1), memory_bytes, least=4)
        search = Lanczos(rest, 1, end, 0.0, seed, 1, capacity)
        search.run(0.0, steps)
        if not key(ritz(search.t, end)[0], end)[0] > key(values, end)[-1] + within:
            return None, search.products
        # A quarter, so that a mixture with a found vector of the same eigenvalue stays within it too.
        search.run(0.25 * within / (search.scale or 1.0), budget - 1)
        _, better, _ = search.measure()
        for _ in range(2):
            better = better - rest.along(better)
    return better / better.norm(), search.products


class _Deflated(Operator):
    """A with the eigenvalues of found vectors V (k, P) moved to one value: (I - V'V) A (I - V'V) + value V'V."""

    name = "deflated"

    def __init__(self, operator: Operator, found: Tensor, value: float) -> None:
        super().__init__(operator.size, operator.dtype, operator.device)
        self.operator, self.found, self.value = operator, found, value

    def _products(self, vectors: Tensor) -> Tensor:
        along = self.along(vectors)
        images = self.operator.products(vectors - along)
        return images - self.along(images) + self.value * along

    def along(self, vectors: Tensor) -> Tensor:
        """The parts of vectors (B, P) in the span of the found."""
        return torch.from_numpy(inner(vectors, self.found)).to(self.found) @ self.found
