"""What one pass over the data gives: per-sample losses, hits and logits, and how far the logits are from another pass.

N samples, C classes. Everything is reduced in float64 from float32 logits or better (NUMERICS 6); standard errors are
per sample, and paired for a difference (NUMERICS 14).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.errors import LandscapeError

NAN = float("nan")


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Losses and logits of one set of weights on fixed data.

    Attributes
    ----------
    loss
        Loss of each sample, (N,) float64, in nats for the default loss.
    hit
        Whether the largest logit is the target's, (N,) bool; None where targets are no class indices.
    logits
        Output of the model, (N, C), float32 or better, on the model's device.
    log_probs
        Its log-softmax, (N, C) float64; None where the output is no class scores.
    fingerprint
        Of the data, as in :class:`landscape.objective.Objective`.
    """

    loss: NDArray[np.float64]
    hit: NDArray[np.bool_] | None
    logits: Tensor
    log_probs: Tensor | None
    fingerprint: str

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.loss)

    @property
    def mean_loss(self) -> float:
        """Sum over samples / N; inf stays inf and NaN stays NaN."""
        return _mean(self.loss)

    @property
    def loss_se(self) -> float:
        """Standard error of the mean loss over samples; NaN for one sample."""
        return _standard_error(self.loss)

    @property
    def accuracy(self) -> float:
        """Share of hits, NaN where there are no classes."""
        return NAN if self.hit is None else _mean(self.hit.astype(np.float64))

    @property
    def accuracy_se(self) -> float:
        """Standard error of the accuracy over samples."""
        return NAN if self.hit is None else _standard_error(self.hit.astype(np.float64))

    @property
    def nonfinite(self) -> int:
        """How many samples have a loss that is inf or NaN."""
        return int(np.count_nonzero(~np.isfinite(self.loss)))

    def rise_over(self, centre: Evaluation) -> tuple[float, float]:
        """Mean of loss(here) - loss(centre) over samples, and its paired standard error; of the same data only."""
        self._same_data(centre)
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, and is meant to be
            rise = self.loss - centre.loss
        return _mean(rise), _standard_error(rise)

    def logit_radius(self, centre: Evaluation) -> float:
        """RMS of the class-centred change of the logits over the RMS of the centred logits at the centre."""
        return self.distance_from(centre)[0]

    def kl_from(self, centre: Evaluation) -> float:
        """Mean over samples of KL(centre || here) of the predicted classes, in nats."""
        return self.distance_from(centre)[1]

    def distance_from(self, centre: Evaluation) -> tuple[float, float]:
        """Logit radius and mean KL from one pass over the logits; NaN where the output is no class scores."""
        self._same_data(centre)
        if self.log_probs is None or centre.log_probs is None:
            return NAN, NAN
        if self is centre:
            return 0.0, 0.0
        # log-softmax differs from the logits by a constant per sample, which centring over the classes removes.
        change_NC = self.log_probs - centre.log_probs
        # A class that is masked at both, -inf, has not moved.
        masked_NC = torch.isneginf(self.log_probs) & torch.isneginf(centre.log_probs)
        moved = float(torch.linalg.vector_norm(_centred(change_NC, masked_NC)))
        at_centre = float(torch.linalg.vector_norm(_centred(centre.log_probs, masked_NC)))
        radius = 0.0 if moved == 0 else (moved / at_centre if at_centre else math.inf)
        # KL = sum_c p_c (log p_c - log q_c); a masked class (p = 0, log p = -inf) adds nothing, a NaN stays.
        p_NC = centre.log_probs.exp()
        kl = -torch.where(p_NC == 0, 0.0, p_NC * change_NC).sum() / self.n
        return radius, float(kl) + 0.0

    def _same_data(self, centre: Evaluation) -> None:
        if self.fingerprint != centre.fingerprint:
            raise LandscapeError(
                f"expected two evaluations on the same data, found fingerprints {centre.fingerprint} "
                f"and {self.fingerprint}"
            )


def _centred(values_NC: Tensor, masked_NC: Tensor) -> Tensor:
    # Zero at the masked classes, the mean taken over the others.
    kept_NC = torch.where(masked_NC, 0.0, values_NC)
    mean_N1 = kept_NC.sum(dim=1, keepdim=True) / (~masked_NC).sum(dim=1, keepdim=True)
    return torch.where(masked_NC, 0.0, kept_NC - mean_N1)


def _mean(values: NDArray[np.float64]) -> float:
    with np.errstate(invalid="ignore"):
        return float(values.sum() / len(values))


def _standard_error(values: NDArray[np.float64]) -> float:
    if len(values) < 2 or not np.isfinite(values).all():
        return NAN
    return float(values.std(ddof=1) / math.sqrt(len(values)))
