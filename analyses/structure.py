"""Units and spectra of the matrices that a file holds, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import pandas as pd
    import torch

    from analyses.store import Tables
    from analyses.weights import Held

BINS = 60
SPECTRUM_BINS = (30, 120)
"""Least and most, as there are singular values."""
WIDEST = 6.0
"""Of a histogram of singular values, in units of sigma sqrt(M); what lies beyond is in the last bin."""


def unit_tables(held: Held, *, alpha: float, same: float) -> Tables:
    """``units``: a row a low-rank pair and side; ``agreement``: cosines of all pairs of units beside their null.

    Codes of one bit are compared as codes, all others by their values. Nothing where there is no pair of two units.
    """
    import numpy as np
    import pandas as pd

    from quant.units import SIDES, count_units, likeness

    edges = np.linspace(-1, 1, BINS + 1)
    rows, bars = [], {side: np.zeros((2, BINS)) for side in SIDES}
    for module, (down_name, up_name) in held.pairs().items():
        bits = held.levels(down_name) in (1, 2) and held.levels(up_name) in (1, 2)
        source = held.codes if bits else held.tensors
        down, up = source[down_name].flatten(1), source[up_name].flatten(1)
        for side in SIDES:
            found = likeness(down, up, side, bits=bits)
            rows.append(
                {
                    "module": module,
                    "side": side,
                    "compared": "codes" if bits else "values",
                    **count_units(found, alpha=alpha, same=same),
                }
            )
            bars[side] += np.histogram(found.pairs, edges)[0], found.null_shares(edges) * found.pairs.size
    total = {side: counts[0].sum() for side, counts in bars.items()}
    if not rows or not total["both"]:
        return {}
    width = 2 / BINS
    agreement = [
        pd.DataFrame(
            {
                "side": side,
                "left": edges[:-1],
                "right": edges[1:],
                "density": counts[0] / total[side] / width,
                "null_density": counts[1] / total[side] / width,
            }
        )
        for side, counts in bars.items()
    ]
    return {"units": pd.DataFrame(rows), "agreement": pd.concat(agreement, ignore_index=True)}


def spectrum_tables(held: Held, *, confidence: float, seed: int, on_step: Callable[..., Any] | None) -> Tables:
    """``spectra``: a row a matrix and a row a product; ``spectrum``: singular values, matrices of one shape pooled."""
    import pandas as pd

    from quant.spectra import product_singular_values, random_product_rank

    rows: list[dict[str, Any]] = []
    shapes: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray | None]]] = {}
    for name in held.matrices:
        row, shape, scaled = _matrix(name, held.tensors[name], _initial(held, name), confidence)
        rows.append(row)
        shapes.setdefault(shape, []).append(scaled)
        if on_step:
            on_step()
    for module, (down_name, up_name) in held.pairs().items():
        down, up = held.tensors[down_name].flatten(1), held.tensors[up_name].flatten(1)
        s = product_singular_values(up, down)
        rows.append(
            {
                **_ranks(f"{module}: up @ down", "product", (up.shape[0], down.shape[1]), s),
                "rank_at_most": min(*up.shape, *down.shape),
                "effective_rank_null": random_product_rank(up.shape[0], up.shape[1], down.shape[1], seed=seed),
            }
        )
    return {"spectra": pd.DataFrame(rows), "spectrum": _histograms(shapes)}


def _initial(held: Held, name: str) -> torch.Tensor | None:
    initial = held.initial.get(name)
    return initial if initial is not None and initial.shape == held.tensors[name].shape else None


def _ranks(name: str, kind: str, shape: tuple[int, int], s: torch.Tensor) -> dict[str, Any]:
    from quant.spectra import effective_rank, stable_rank

    return {
        "tensor": name,
        "kind": kind,
        "rows": shape[0],
        "columns": shape[1],
        "rank_at_most": min(shape),
        "effective_rank": effective_rank(s),
        "stable_rank": stable_rank(s),
        "largest": float(s[0]),
    }


def _matrix(
    name: str, w: torch.Tensor, initial: torch.Tensor | None, confidence: float
) -> tuple[dict[str, Any], tuple[int, int], tuple[np.ndarray, np.ndarray | None]]:
    """Its row; its shape, the shorter side first; its singular values, and the initial ones, in sigma sqrt(M)."""
    from quant.spectra import MarchenkoPastur, above_edge, effective_rank, singular_values

    s, law = singular_values(w), MarchenkoPastur.of(w)
    shape = (law.rows, law.columns)
    count, share = above_edge(s, law, confidence)
    row = {
        **_ranks(name, "matrix", shape, s),
        "effective_rank_null": effective_rank(law.quantiles()),
        "edge_low": law.edges[0],
        "edge_high": law.edges[1],
        "edge_limit": law.largest(confidence),
        "above_edge": float(count),
        "share_above": share,
    }
    scaled, before = _scaled(s, law), None
    if initial is not None and bool(initial.any()):
        first, chance = singular_values(initial), MarchenkoPastur.of(initial)
        row |= {
            "effective_rank_init": effective_rank(first),
            "above_edge_init": float(above_edge(first, chance, confidence)[0]),
        }
        before = _scaled(first, chance)
    return row, (min(shape), max(shape)), (scaled, before)


def _scaled(s: torch.Tensor, law: Any) -> np.ndarray:
    return (s / law.unit).numpy() if law.unit else s.numpy()


def _histograms(shapes: Mapping[tuple[int, int], list[tuple[np.ndarray, np.ndarray | None]]]) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    from quant.spectra import MarchenkoPastur

    frames = []
    for (m, most), found in shapes.items():
        trained = np.concatenate([s for s, _ in found])
        before = [s for _, s in found if s is not None]
        law = MarchenkoPastur(rows=m, columns=most, sigma=most**-0.5)
        end = min(WIDEST, 1.02 * max(trained.max(), law.edges[1]))
        edges = np.linspace(0, end, int(np.clip(trained.size // 3, *SPECTRUM_BINS)) + 1)
        width = edges[1]
        frames.append(
            pd.DataFrame(
                {
                    "shape": f"{m} x {most}",
                    "matrices": len(found),
                    "left": edges[:-1],
                    "right": edges[1:],
                    "density": np.histogram(np.minimum(trained, end), edges)[0] / trained.size / width,
                    "mp_density": law.shares(edges) / width,
                    "density_init": _density(before, edges),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _density(values: list[np.ndarray], edges: np.ndarray) -> np.ndarray:
    import numpy as np

    if not values:
        return np.full(len(edges) - 1, np.nan)
    pooled = np.minimum(np.concatenate(values), edges[-1])
    return np.histogram(pooled, edges)[0] / pooled.size / edges[1]
