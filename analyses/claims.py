"""The claims of the paper with a computed verdict each (PAPER section 0, claims 1 to 4; NUMERICS 16).

``contrasts.py`` says what is compared and which family it belongs to, ``statistics.py`` decides a family; here the two
meet. A verdict is a statement about training seeds on a fixed split: it covers the noise of training, not another draw
of the data. "Flatter" speaks of robustness to noise on the weights, not of generalisation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from analyses import contrasts
from analyses.contrasts import Contrast
from analyses.statistics import Decision, Kind, Verdict, decide, threshold

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence with its verdict; the attributes are the columns of the table ``claims/claims``.

    Attributes
    ----------
    claim, statement, kind, endpoint
        Number in the paper, the sentence for this configuration, superiority or non-inferiority, and what was measured.
    margin
        The effect on the border between holding and not, with its sign: 0, -0.01 of accuracy, 0.05 of ratio.
    effect, low, high, confidence
        Mean and interval in ``unit``; the confidence is that of Holm's step in the family, not the nominal one. Of a
        conjunction: those of the part that settled it.
    n, smallest_effect
        Replicates, and the distance from the margin that they would have shown with a power of .8.
    p_value, p_holm, family
        Two-sided against the margin, and adjusted within the family. Decided exactly if ``p_holm`` is at most alpha.
    test, verdict, unit
        Test and replicate in words, or why there is none; what came out; unit of the effect.
    task, label
        Which data, and which configuration the statement is about.
    """

    claim: int
    statement: str
    kind: Kind
    endpoint: str
    margin: float
    effect: float
    low: float
    high: float
    confidence: float
    n: int
    smallest_effect: float
    p_value: float
    p_holm: float
    family: str
    test: str
    verdict: Verdict
    unit: str
    task: str
    label: str

    def to_frame(self) -> pd.DataFrame:
        """One row of the table ``claims/claims``."""
        return to_frame([self])

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False)


def evaluate(
    *,
    flatness: pd.DataFrame | None = None,
    gaussianity: pd.DataFrame | None = None,
    precision: pd.DataFrame | None = None,
    tradeoff: pd.DataFrame | None = None,
    confidence: float = 0.95,
) -> list[Claim]:
    """Every claim that the tables can speak to, decided together.

    Holm runs across methods and claims, so which tables are given belongs to the result: fix it before looking.

    Parameters
    ----------
    flatness
        ``flatness/summary``, or the same with a row for each ``direction``: claim 1.
    gaussianity
        ``gaussianity/matrices``: claim 2.
    precision
        ``precision/points``: claim 3.
    tradeoff
        ``tradeoff/points``: claim 4.
    confidence
        1 minus the error rate of a family.
    """
    found: list[Contrast] = []
    for frame, builder in (
        (flatness, contrasts.flatter),
        (gaussianity, contrasts.gaussian),
        (precision, contrasts.low_bits),
        (tradeoff, contrasts.fewer_bits),
    ):
        if frame is not None and len(frame):
            found += builder(frame)
    return decided(found, confidence)


def decided(found: list[Contrast], confidence: float = 0.95) -> list[Claim]:
    """Decide each family by itself; the order stays."""
    claims: dict[int, Claim] = {}
    for family in dict.fromkeys(c.family for c in found):
        members = [i for i, c in enumerate(found) if c.family == family]
        decisions = decide([found[i].comparison for i in members], confidence)
        claims |= {i: _claim(found[i], decision) for i, decision in zip(members, decisions, strict=True)}
    return [claims[i] for i in range(len(found))]


def to_frame(claims: Iterable[Claim]) -> pd.DataFrame:
    """The table ``claims/claims``: one row a claim, with all columns even where there is none."""
    import pandas as pd

    return pd.DataFrame([asdict(c) for c in claims], columns=list(Claim.__dataclass_fields__))


def near_gaussian(matrices: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Claim 2 alone, as a table."""
    return to_frame(evaluate(gaussianity=matrices, confidence=confidence))


def low_bits(points: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Claim 3 alone, as a table."""
    return to_frame(evaluate(precision=points, confidence=confidence))


def fewer_bits(points: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Claim 4 alone, as a table."""
    return to_frame(evaluate(tradeoff=points, confidence=confidence))


def flatter(rises: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """The table ``flatness/verdicts``: is each model flatter than the reference?

    The reference of a task is full fine-tuning, else its first model. One row for each model, space and radius kind,
    and one (radius kind ``all``) for the three together, which is the verdict; columns of the claims, then ``space``,
    ``radius_kind``, ``radius``. Each space and radius kind is a family of its own here: these rows are for reading,
    the claims are ``evaluate``'s. Two checkpoints alone are compared over their directions.
    """
    rows: list[Contrast] = []
    about: dict[str, list[str | float]] = {"space": [], "radius_kind": [], "radius": []}
    for task, frame in contrasts.models(rises):
        full = frame[frame["method"] == "full"]
        reference = (full if len(full) else frame)["label"].iloc[0]
        for label in frame["label"].unique():
            for joint in contrasts.against(frame, reference, label, task) if label != reference else ():
                for kind, radius in {**joint.radii, "all": float("nan")}.items():
                    rows.append(_under(joint, kind))
                    about["space"].append(joint.space)
                    about["radius_kind"].append(kind)
                    about["radius"].append(radius)
    return to_frame(decided(rows, confidence)).assign(**about)


def _under(joint: Contrast, kind: str) -> Contrast:
    """The contrast under one radius kind, or under all, in a family of its own."""
    parts = joint.comparison.parts if kind == "all" else {kind: joint.comparison.parts[kind]}
    family = f"flatter, space {joint.space}, radius {kind}" + (f", task {joint.task}" if joint.task else "")
    return replace(joint, family=family, comparison=replace(joint.comparison, parts=parts))


def _claim(contrast: Contrast, decision: Decision) -> Claim:
    e, c = decision.estimate, contrast.comparison
    return Claim(
        claim=contrast.claim, statement=contrast.statement, kind=c.kind, endpoint=contrast.endpoint,
        margin=threshold(c.kind, c.margin, c.side), effect=e.value, low=e.low, high=e.high, confidence=e.confidence,
        n=e.n, smallest_effect=e.smallest_effect, p_value=decision.p_value, p_holm=decision.p_holm,
        family=contrast.family, test=_test(contrast, decision), verdict=decision.verdict, unit=contrast.unit,
        task=contrast.task, label=contrast.label,
    )  # fmt: skip


def _test(contrast: Contrast, decision: Decision) -> str:
    e, parts = decision.estimate, contrast.comparison.parts
    text = f"{e.method}; unit: {contrast.replicate}"
    if len(parts) > 1:
        text += f"; must hold under each of {', '.join(parts)} (shown: {decision.part})"
    return text if e.status == "ok" else f"{text}; {e.status}"
