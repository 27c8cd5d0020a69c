"""A 32-bit checkpoint with its matrices rounded to few bits after training: which matrices, and what is stored of them.

Rounded are the adapter's own tensors, or of full fine-tuning all weight matrices that training moved. The head, biases,
norm gains and, of a whole network, tokens stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analyses.errors import AnalysisError

if TYPE_CHECKING:
    from torch import Tensor

    from analyses.checkpoint import Checkpoint
    from landscape.evaluation import Evaluation
    from landscape.objective import Objective
    from landscape.space import Space
    from quant.content import LowbitTensor

Row = dict[str, Any]


def rounded_space(checkpoint: Checkpoint) -> Space:
    """The matrices of a 32-bit checkpoint that would be stored in low bits, as a space.

    Raises
    ------
    AnalysisError
        If they are stored in low bits already, or there is none.
    """
    import torch

    from landscape.space import Space
    from train.methods import get

    if checkpoint.bits < 32:
        raise AnalysisError(
            f"expected a 32-bit checkpoint to round after training, found {checkpoint.path.name} of {checkpoint.bits}"
        )
    method, kind = get(checkpoint.method), checkpoint.spaces()[0]
    if not (method.has_adapter or method.whole):
        raise AnalysisError(f"{checkpoint.label} trains no matrix but its head, which keeps its own bits")
    model, names = checkpoint.network(kind)
    space = Space(model, names, kind=kind)
    roles = ("matrix",) if method.whole else ("matrix", "token")
    chosen = [name for name in space.names if space.roles[name] in roles]
    if method.whole and checkpoint.run is not None:
        before = checkpoint.run.initial_state()
        chosen = [n for n in chosen if not torch.equal(space.centre[n].cpu(), before[n])]
    if not chosen:
        raise AnalysisError(f"{checkpoint.label} has no matrix that training moved, but its head")
    return Space(model, chosen, kind=kind)


def pairs(quantizers: Sequence[str], bits: Sequence[int]) -> list[tuple[str, int]]:
    """Each quantiser (all there are, if none is named) at each of these bits that it exists at, in that order.

    A wrong name is a ``QuantError``.

    Raises
    ------
    AnalysisError
        If nothing is left.
    """
    from quant.errors import QuantError
    from quant.quantizers import get, names, parse

    found = []
    for name in quantizers or names():
        parse(name)
        for b in dict.fromkeys(bits):
            try:
                get(name, b)
            except QuantError:
                continue  # it does not exist at these bits
            found.append((name, b))
    if not found:
        of, at = ", ".join(quantizers) or "all quantisers", ", ".join(map(str, bits)) or "none"
        raise AnalysisError(f"expected bits at which a quantiser exists, found {at} for {of}")
    return found


def rounded(space: Space, quantizer: str, bits: int) -> list[LowbitTensor]:
    """Every tensor of the space as a file would store it."""
    from quant.content import LowbitTensor

    return [LowbitTensor.quantised(name, w, quantizer=quantizer, bits=bits) for name, w in space.centre.items()]


def evaluate(objective: Objective, space: Space, values: Mapping[str, Tensor]) -> Evaluation:
    """One pass with exactly these values in some of the space's tensors; all is put back afterwards."""
    import torch

    with space:
        with torch.no_grad():
            for name, x in values.items():
                space.parameters[name].copy_(x)
        return objective.evaluate()


def accuracy_change(here: Evaluation, centre: Evaluation) -> tuple[float, float]:
    """Accuracy here less that at the centre, and the standard error of the paired difference over images."""
    import numpy as np

    if here.hit is None or centre.hit is None:
        return math.nan, math.nan
    change = here.hit.astype(np.float64) - centre.hit
    return float(change.mean()), float(change.std(ddof=1) / math.sqrt(len(change))) if len(change) > 1 else math.nan


def storage(tensors: Sequence[LowbitTensor], weights: Mapping[str, Tensor]) -> list[Row]:
    """A row a tensor: what its codes cost, what they hold, and how far its values are from the weights.

    Columns: ``tensor``, ``weights`` (count), ``sigma``; ``adapter_bytes``, codes dense and statistics;
    ``entropy_coded_bytes``, codes at their order-0 entropy and statistics; ``rate_bits`` and ``entropy_bits``, bits a
    weight of dense codes and of their entropy; ``distortion``, mean squared error over the variance; and next to it the
    least that any code of so many bits a weight has for Gaussian weights of this variance, ``bound_at_bits`` and
    ``bound_at_entropy`` (Cover and Thomas 2006, equation 10.36). Weights that are not Gaussian can lie below.
    """
    from quant.quantizers import get

    rows: list[Row] = []
    for t in tensors:
        assert t.codes is not None
        w, entry = weights[t.name].detach().cpu().double(), t.entry()
        variance = float(w.var(correction=0))
        error = float((w - t.dense().double()).square().mean())
        codes_each = t.codes.numel() / w.numel()
        rate = math.log2(get(t.quantizer or "", t.bits).levels) * codes_each
        entropy = code_entropy(t.codes) * codes_each
        rows.append(
            {
                "tensor": t.name,
                "weights": w.numel(),
                "sigma": math.sqrt(variance),
                "adapter_bytes": t.nbytes,
                "entropy_coded_bytes": entropy * w.numel() / 8 + entry.statistic_bytes,
                "rate_bits": rate,
                "entropy_bits": entropy,
                "distortion": error / variance if variance else 0.0,
                # D(R) / sigma^2 = 2^(-2 R)
                "bound_at_bits": 2.0 ** (-2 * rate),
                "bound_at_entropy": 2.0 ** (-2 * entropy),
            }
        )
    return rows


def pooled(rows: Sequence[Row]) -> Row:
    """The rows of a model's tensors as one: bytes summed, all else the mean over weights."""
    count = sum(row["weights"] for row in rows)
    summed = {name: sum(row[name] for row in rows) for name in ("adapter_bytes", "entropy_coded_bytes")}
    means = ("rate_bits", "entropy_bits", "distortion", "bound_at_bits", "bound_at_entropy")
    return summed | {name: sum(row["weights"] * row[name] for row in rows) / count for name in means}


def code_entropy(codes: Tensor) -> float:
    """Order-0 entropy of codes (uint8) in bits a code: what an ideal coder of independent codes would leave."""
    import torch

    counts = torch.bincount(codes.reshape(-1).long())
    p = counts[counts > 0].double() / codes.numel()
    # H = -sum p log2 p
    return float(-(p * p.log2()).sum()) + 0.0


def facts(space: Space, objective: Objective, centre: Evaluation) -> dict[str, Any]:
    """What NUMERICS 28 asks a table of rounded models to say, as plain data."""
    from landscape.provenance import of_objective, of_space

    return {
        **of_space(space),
        "directions": "rounding errors of the tensors, not drawn",
        "normalisation": "none",
        "objectives": of_objective(objective),
        "baseline": {
            "loss_nats": centre.mean_loss,
            "loss_se_nats": centre.loss_se,
            "accuracy": centre.accuracy,
            "accuracy_se": centre.accuracy_se,
        },
    }
