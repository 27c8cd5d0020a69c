"""A trained adapter at a smaller hidden size, as the file that would be stored: merged, or pruned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from quant.merge import contributions, eliminate, merge_parallel, output_spectrum, truncate

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from analyses.branches import Branch, Pair
    from quant.content import Lowbit, LowbitTensor


def summary(branches: Mapping[str, Branch], tolerance: float) -> pd.DataFrame:
    """A row a branch.

    ``units``; ``exact_units`` left after exact merging (of a linear branch the rank of the product);
    ``different_units`` by :mod:`quant.units`; ``silent_units`` that no image wakes; ``product_rank`` and
    ``output_rank``, effective ranks of up @ down and of the outputs on images; ``top_share``: of the outputs' squares
    in their largest direction.
    """
    import pandas as pd

    from quant.spectra import effective_rank, product_singular_values
    from quant.units import count_units, likeness

    rows = []
    for name, b in branches.items():
        s, out = product_singular_values(b.up, b.down), output_spectrum(b.moments, b.up)
        rows.append(
            {
                "module": name,
                "units": len(b.down),
                "exact_units": len(_exact(b, tolerance)[0]),
                "different_units": count_units(likeness(b.down, b.up))["different_units"],
                "silent_units": int((b.moments.diagonal() == 0).sum()),
                "product_rank": effective_rank(s),
                "output_rank": effective_rank(out),
                "top_share": float(out[0] ** 2 / out.square().sum()) if out[0] else math.nan,
            }
        )
    return pd.DataFrame(rows)


def predicted(about: pd.DataFrame) -> int:
    """The hidden size that the outputs' effective ranks ask for: the largest of the branches, rounded up."""
    return max(1, math.ceil(about.output_rank.max()))


def exact(branches: Mapping[str, Branch], tolerance: float) -> dict[str, Pair]:
    """The pairs after exact merging, whatever their sizes, filled up with units of zeros to the largest of them."""
    pairs = {name: _exact(b, tolerance) for name, b in branches.items()}
    size = max(len(down) for down, _ in pairs.values())
    return {name: _padded(pair, size) for name, pair in pairs.items()}


def merged(branches: Mapping[str, Branch], size: int) -> dict[str, Pair]:
    """The pairs at a hidden size: the product's best approximation, or fewest units with columns fitted on images."""
    pairs = {}
    for name, b in branches.items():
        if b.linear:
            pairs[name] = truncate(b.down, b.up, size)
            continue
        kept, up = eliminate(b.moments, b.up, size)
        pairs[name] = b.down[kept], up
    return pairs


def requantised(stored: Lowbit, pairs: Mapping[str, Pair], *, bits: int) -> Lowbit:
    """The file with these pairs, as plain float32 or by the quantiser that it was stored with."""
    from quant.content import LowbitTensor

    new: dict[str, Tensor] = {}
    for name, (down, up) in pairs.items():
        new |= {f"{name}.down.weight": down.contiguous(), f"{name}.up.weight": up.contiguous()}
    tensors = []
    for t in stored.tensors:
        if t.name not in new:
            tensors.append(t)
        elif bits == 32:
            tensors.append(LowbitTensor.plain(t.name, new[t.name].float()))
        else:
            assert t.quantizer is not None
            tensors.append(LowbitTensor.quantised(t.name, new[t.name], quantizer=t.quantizer, bits=bits))
    size = len(next(iter(pairs.values()))[0])
    return replace(stored, header={**stored.header, "dim": size, "bits": bits}, tensors=tensors)


def pruned(stored: Lowbit, branches: Mapping[str, Branch], size: int) -> Lowbit:
    """The file with the units of most output in each branch; codes and statistics stay where their grid allows."""
    places: dict[str, tuple[int, Tensor]] = {}
    for name, b in branches.items():
        kept = contributions(b.moments, b.up).topk(size).indices.sort().values
        places |= {f"{name}.down.weight": (0, kept), f"{name}.up.weight": (1, kept)}
    tensors = [_taken(t, *places[t.name]) if t.name in places else t for t in stored.tensors]
    return replace(stored, header={**stored.header, "dim": size}, tensors=tensors)


def _exact(b: Branch, tolerance: float) -> Pair:
    if b.linear:
        from quant.spectra import product_singular_values

        s = product_singular_values(b.up, b.down)
        return truncate(b.down, b.up, max(1, int((s > tolerance * s[0]).sum())))
    kept, up = merge_parallel(b.down, b.up, tolerance)
    return b.down[kept], up


def _padded(pair: Pair, size: int) -> Pair:
    import torch

    down, up = pair
    more = size - len(down)
    return torch.cat([down, down.new_zeros(more, down.shape[1])]), torch.cat([up, up.new_zeros(len(up), more)], dim=1)


def _taken(t: LowbitTensor, axis: int, kept: Tensor) -> LowbitTensor:
    """The tensor with some of its rows or columns, their values as they were; quantised anew where its grid is lost."""
    from quant.content import LowbitTensor
    from quant.quantizers import get

    dense = t.dense().index_select(axis, kept).contiguous()
    if t.codes is None or t.quantizer is None or t.statistics is None:
        return LowbitTensor.plain(t.name, dense)
    rule = get(t.quantizer, t.bits)
    same_grid = rule.statistics_count(tuple(dense.shape)) == t.statistics.numel() and "/group" not in t.quantizer
    if not same_grid or tuple(t.codes.shape) != tuple(t.shape):
        return LowbitTensor.quantised(t.name, dense, quantizer=t.quantizer, bits=t.bits)
    codes = t.codes.index_select(axis, kept).contiguous()
    return replace(t, shape=tuple(dense.shape), codes=codes)
