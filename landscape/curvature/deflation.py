"""Whether a search left out pairs: some steps from another start, at what is left of the operator.

One Krylov space holds one vector of a multiple eigenvalue, so all residuals may be small while a copy is missing. In
the operator without what was found, such a copy is the outermost. P parameters, k found pairs.
"""

from __future__ import annotations

from torch import Tensor

from landscape.curvature.basis import Floats, combined, inner, memory_for
from landscape.curvature.lanczos import End, Lanczos, key
from landscape.curvature.operator import Operator

# Of the products that the search took: what the check takes at least, and at most where the outermost of the rest stays
# uncertain. With outliers above a narrow or power-law bulk a copy shows after a tenth; where there is no gap, as in the
# Hessians of wide linear layers, a quarter missed it in a third of the cases, a half in one of fifty.
LEAST, MOST = 1 / 4, 3 / 4


def steps_after(products: int) -> tuple[int, int]:
    """The fewest and the most products that a search of so many is checked with."""
    return max(4, round(LEAST * products)), max(4, round(MOST * products))


def left_out(
    operator: Operator,
    values: Floats,
    vectors: Tensor,
    *,
    end: End,
    within: float,
    steps: tuple[int, int],
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
    steps
        The fewest and the most products until a better one has to show. Between them the search ends where the value of
        the outermost pair and its residual together are no better.
    budget
        Products in all.
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
        bound = float(key(values, end)[-1]) + within
        least, most = steps
        search.run(0.0, least)
        outermost, residual = search.outermost()
        while outermost <= bound < outermost + residual and search.products < min(most, budget):
            search.run(0.0, search.products + 1)
            outermost, residual = search.outermost()
        if not outermost > bound:
            return None, search.products
        # A quarter, so that a mixture with a found vector of the same eigenvalue stays within it too.
        search.run(0.25 * within / (search.scale or 1.0), budget - 1)
        _, better, _ = search.measure(budget)
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
        return combined(inner(vectors, self.found), self.found)
