"""The difference of two accuracies on the same images, with its interval, also where no image changed sides.

Differences of hits are -1, 0 and 1, mostly 0: a bootstrap of them has a lattice for a law, and none where all are 0.
"""

from __future__ import annotations

import math

from analyses.errors import AnalysisError
from analyses.statistics import Estimate

METHOD = "score interval of paired shares (Tango 1998)"


def paired_hits(gained: int, lost: int, n: int, confidence: float = 0.95, *, null: float = 0.0) -> Estimate:
    """Accuracy of the second network minus that of the first, the unit an image: about these two networks.

    Parameters
    ----------
    gained, lost, n
        Images that only the second gets right, that only the first does, and all.
    confidence, null
        Of the two-sided interval; what the p-value is against.

    Raises
    ------
    AnalysisError
        If the counts are none of images, or the confidence is not between 0 and 1.
    """
    from scipy import optimize, special

    if min(gained, lost) < 0 or n < max(gained + lost, 1):
        raise AnalysisError(f"expected images gained and lost among {n}, found {gained} and {lost}")
    if not 0 < confidence < 1:
        raise AnalysisError(f"expected a confidence between 0 and 1, found {confidence}")
    value = (gained - lost) / n
    z = -float(special.ndtri((1 - confidence) / 2))

    def end(sign: int) -> float:
        """Where the score is z on that side; the end of what a difference can be where it never is."""
        last = sign * (1 - 1e-12)
        if abs(_score(gained, lost, n, last)) <= z or (abs(value) >= 1 - 1e-12 and value * sign > 0):
            return float(sign)
        return float(optimize.brentq(lambda d: sign * _score(gained, lost, n, d) + z, value, last, xtol=1e-12))

    # Var of the mean of the differences, their second moment (gained + lost) / n
    se = math.sqrt(max((gained + lost) / n - value**2, 0) / max(n - 1, 1))
    two_sided = 2 * float(special.ndtr(-abs(_score(gained, lost, n, null))))
    return Estimate(
        value=value, se=se, low=end(-1), high=end(1), confidence=confidence, n=n, method=METHOD, status="ok",
        smallest_effect=(z + float(special.ndtri(0.8))) * se, p_value=min(1.0, two_sided),
    )  # fmt: skip


def _score(gained: int, lost: int, n: int, d: float) -> float:
    """The score of a true difference d, standard normal under it."""
    # the share that is lost, most likely under d: 2 n q^2 + B q - lost d (1 - d) = 0
    b = -gained - lost + (2 * n - gained + lost) * d
    q = (math.sqrt(max(b * b + 8 * n * lost * d * (1 - d), 0)) - b) / (4 * n)
    variance = n * (2 * q + d * (1 - d))
    off = gained - lost - n * d
    if variance <= 0:
        return 0.0 if abs(off) < 1e-9 else math.copysign(math.inf, off)
    # Z = (gained - lost - n d) / sqrt(n (2 q + d (1 - d)))
    return off / math.sqrt(variance)
