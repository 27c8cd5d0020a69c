"""Claims 1 to 4 from small tables whose effects are known by construction (NUMERICS rule 16)."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analyses.claims import Claim, evaluate, fewer_bits, flatter, low_bits, near_gaussian, to_frame
from analyses.errors import AnalysisError

SCHEMA = [
    "claim", "statement", "kind", "endpoint", "margin", "effect", "low", "high", "confidence", "n", "smallest_effect",
    "p_value", "p_holm", "family", "test", "verdict", "unit",
]  # fmt: skip
NOISE = np.array([-0.02, 0.01, 0.0, -0.01, 0.02])  # of five seeds; mean 0, deviation sqrt(.00025)
ERROR = math.sqrt(0.00025 / 5)
T4 = 2.7764451  # .975 quantile of t with 4 degrees


def summary(rises: dict[tuple[str, str], float], spaces=("full", "factors"), seeds=5, **columns) -> pd.DataFrame:
    """``flatness/summary`` of models (label, method) with these mean rises; full fine-tuning without noise."""
    return pd.DataFrame(
        {
            "label": label, "method": method, "dim": 8, "bits": 32, "seed": seed, "run": f"{label}.s{seed}",
            "space": space, "radius_kind": kind, "radius": radius,
            "rise_nats": rise + (method != "full") * NOISE[seed], **columns,
        }
        for (label, method), rise in rises.items()
        for space, seed in itertools.product(spaces, range(seeds))
        for kind, radius in (("alpha", 0.5), ("effective", 0.1), ("logit", 0.3))
    )  # fmt: skip


MODELS = {("Full fine-tuning", "full"): 1.0, ("LoRA r8", "lora"): 0.4, ("AdaptFormer h8", "adaptformer"): 1.5}


def accuracies(cells: dict[tuple[int, int], float], seeds=5, **columns) -> pd.DataFrame:
    """``precision/points`` and ``tradeoff/points``: (bits, dim) -> mean accuracy; 32 bits has no noise over seeds."""
    return pd.DataFrame(
        {
            "method": "lora", "dim": dim, "bits": bits, "seed": seed,
            "test_accuracy": mean + (bits != 32) * NOISE[seed] / 10,
            "adapter_bytes": 1000 * bits * dim, "label": f"LoRA r{dim}, {bits} bit", **columns,
        }
        for (bits, dim), mean in cells.items() for seed in range(seeds)
    )  # fmt: skip


def matrices(ratio: float, bits: int = 32, seeds=5) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "label": f"LoRA r8, {bits} bit", "method": "lora", "bits": bits, "seed": seed, "tensor": tensor,
            "distortion_ratio_1b": ratio + offset + NOISE[seed] / 10,
            "distortion_ratio_1b_null": 1.0,
            "distortion_ratio_4b": math.nan if offset < 0 else 1.25 * ratio,
            "distortion_ratio_4b_null": 1.25,
        }
        for seed in range(seeds) for tensor, offset in (("up", -0.02), ("down", 0.02))
    )  # fmt: skip


def one(frame: pd.DataFrame, text: str) -> pd.Series:
    rows = frame[frame["statement"].str.contains(text, regex=False)]
    assert len(rows) == 1, frame["statement"].tolist()
    return rows.iloc[0]


# Claim 1


def test_flatter_by_hand():
    found = to_frame(evaluate(flatness=summary(MODELS)))
    assert list(found.columns)[: len(SCHEMA)] == SCHEMA
    assert len(found) == 4  # two adapters, two spaces; full fine-tuning is the reference
    row = one(found, "LoRA r8 ends in a flatter minimum than Full fine-tuning, all weights moving")
    assert (row.verdict, row.n, row.unit, row.kind, row.margin) == ("holds", 5, "nats", "superiority", 0.0)
    assert row.effect == pytest.approx(0.6)
    assert row.family == "primary endpoints"
    assert "alpha 0.5, effective 0.1, logit 0.3" in row.endpoint
    assert "must hold under each of alpha, effective, logit" in row.test
    assert (
        one(found, "LoRA r8 ends in a flatter minimum than Full fine-tuning, its own").family == "secondary endpoints"
    )
    assert one(found, "AdaptFormer h8 ends in a flatter minimum than Full fine-tuning, all").verdict == "does not hold"


def test_rule_16_flatter_needs_all_three_radii():
    rises = summary(MODELS, spaces=["full"])
    lora, logit = rises["label"] == "LoRA r8", rises["radius_kind"] == "logit"
    rises.loc[lora & logit, "rise_nats"] += 0.6  # no difference left under this radius
    row = one(to_frame(evaluate(flatness=rises)), "LoRA")
    assert (row.verdict, row.effect) == ("undecided", pytest.approx(0.0))
    assert "(shown: logit)" in row.test
    without = one(to_frame(evaluate(flatness=rises[~logit])), "LoRA")
    assert without.verdict == "undecided"
    assert "0 unit(s)" in without.test


def test_rule_16_directions_are_averaged_before_seeds_are_counted():
    rises = summary(MODELS, spaces=["full"])
    spread = pd.concat(
        [rises.assign(direction=i, rise_nats=rises.rise_nats + x) for i, x in enumerate((-0.3, 0.1, 0.2))]
    )
    pd.testing.assert_frame_equal(to_frame(evaluate(flatness=spread)), to_frame(evaluate(flatness=rises)))
    broken = spread.copy()
    broken.loc[(broken.label == "LoRA r8") & (broken.seed == 0) & (broken.direction == 1), "rise_nats"] = math.nan
    row = one(to_frame(evaluate(flatness=broken)), "LoRA")
    assert row.verdict == "undecided"
    assert "1 of 5 values are not finite" in row.test


def test_rows_that_are_not_the_endpoint_are_left_out():
    still = summary(MODELS, head=False, split="train")
    mixed = pd.concat([still, summary(MODELS, head=True, split="train"), summary(MODELS, head=False, split="test")])
    pd.testing.assert_frame_equal(to_frame(evaluate(flatness=mixed)), to_frame(evaluate(flatness=still)))
    probe = pd.concat([still, summary({("Linear probe", "linear"): 0.1}, head=False, split="train")])
    assert len(evaluate(flatness=probe)) == len(evaluate(flatness=still))


def test_only_common_seeds_are_paired():
    rises = summary(MODELS, spaces=["full"])
    rises = rises[~((rises.method == "full") & (rises.seed == 4)) & ~((rises.method == "lora") & (rises.seed == 0))]
    row = one(to_frame(evaluate(flatness=rises)), "LoRA")
    assert row.n == 3
    assert row.effect == pytest.approx(1.0 - (0.4 + NOISE[1:4].mean()))


def test_verdicts_of_flatness_by_radius_and_together():
    found = flatter(summary(MODELS, spaces=["full"]))
    lora = found[found["label"] == "LoRA r8"].set_index("radius_kind")
    assert list(lora.index) == ["alpha", "effective", "logit", "all"]
    assert lora.radius.tolist()[:3] == [0.5, 0.1, 0.3]
    assert math.isnan(lora.radius["all"])
    # two contrasts in each family: LoRA's p-value is the smaller (t is .6 / error, AdaptFormer's .5 / error), so its
    # interval is that of Holm's first step, at .025
    reach = stats.t.isf(0.025 / 2, 4) * ERROR
    assert (lora.low["alpha"], lora.high["alpha"]) == pytest.approx((0.6 - reach, 0.6 + reach))
    assert set(lora.verdict) == {"holds"}
    assert set(lora.family) == {f"flatter, space full, radius {kind}" for kind in lora.index}


def test_without_full_fine_tuning_the_first_model_is_the_reference():
    found = flatter(summary({("LoRA r8", "lora"): 0.4, ("LoRA r1", "lora"): 0.3}, spaces=["full"]))
    assert set(found["statement"]) == {"LoRA r1 ends in a flatter minimum than LoRA r8, all weights moving"}
    assert evaluate(flatness=summary({("LoRA r8", "lora"): 0.4})) == []
    assert flatter(summary({("LoRA r8", "lora"): 0.4})).empty


def test_rule_16_two_checkpoints_are_compared_over_directions_by_welch():
    rises = summary(MODELS, spaces=["full"], seeds=1)
    noise = {"full": [-0.1, 0.0, 0.1], "lora": [-0.03, 0.01, 0.02], "adaptformer": [0.1, 0.0, -0.1]}
    many = pd.concat(
        [
            rises.assign(direction=i, rise_nats=rises.rise_nats + rises.method.map(lambda m, i=i: noise[m][i]))
            for i in range(3)
        ]
    )
    row = flatter(many[many.method != "adaptformer"]).set_index("radius_kind").loc["alpha"]
    expected = stats.ttest_ind(np.array(noise["full"]) + 1.0, np.array(noise["lora"]) + 0.38, equal_var=False)
    ci = expected.confidence_interval(0.95)
    assert (row.p_value, row.low, row.high) == pytest.approx((expected.pvalue, ci.low, ci.high))
    assert row.test == "Welch t; unit: direction (these two checkpoints only)"
    # without the directions one seed a side says nothing
    alone = one(to_frame(evaluate(flatness=rises)), "LoRA")
    assert (alone.verdict, alone.n) == ("undecided", 1)
    assert "at least 2 are needed" in alone.test


# Claims 2 to 4


def test_near_gaussian_by_hand():
    found = near_gaussian(matrices(1.02))
    row = one(found, "1-bit codebook")
    reach = stats.t.isf(0.025 / 2, 4) * ERROR / 10  # the first of two steps of Holm
    assert (row.effect, row.margin, row.verdict, row.n) == (pytest.approx(0.02), 0.05, "holds", 5)
    assert row.high - row.low == pytest.approx(2 * reach, rel=1e-6)
    assert row.unit == "ratio minus 1"
    # at four bits one matrix is too small: the other alone counts, here without spread over seeds
    four = one(found, "4-bit codebook")
    assert (four.effect, four.verdict) == (pytest.approx(0.02), "undecided")
    assert "equal" in four.test
    assert near_gaussian(matrices(1.2)).verdict.iloc[0] == "does not hold"
    assert near_gaussian(matrices(1.05)).verdict.iloc[0] == "undecided"
    assert set(near_gaussian(matrices(1.02, bits=1)).family) == {"secondary endpoints"}


def test_low_bits_by_hand():
    found = low_bits(accuracies({(32, 8): 0.90, (8, 8): 0.899, (2, 8): 0.86, (1, 8): 0.89, (1, 4): 0.5, (3, 8): 0.9}))
    assert found["label"].tolist() == ["LoRA r8, 1 bit", "LoRA r8, 2 bit", "LoRA r8, 8 bit"]
    assert found["verdict"].tolist() == ["undecided", "does not hold", "holds"]
    assert found["effect"].to_numpy() == pytest.approx([-0.01, -0.04, -0.001])
    assert set(found["margin"]) == {-0.01}
    # t against the margin: .03, .009 over ERROR / 10, and 0: steps .05/3, .05/2, .05
    steps = [0.05, 0.05 / 3, 0.05 / 2]
    assert found["confidence"].to_numpy() == pytest.approx(1 - np.array(steps))
    expected = 2 * stats.t.sf(np.array([0.0, 0.03, 0.009]) / (ERROR / 10), 4)
    assert found["p_value"].to_numpy() == pytest.approx(expected, rel=1e-6)
    assert found["p_holm"].to_numpy() == pytest.approx(expected * [1, 3, 2], rel=1e-6)


def test_fewer_bits_by_hand():
    cells = {(1, 32): 0.9, (32, 1): 0.85, (8, 4): 0.9, (2, 16): 0.95, (1, 16): 0.8, (32, 2): 0.9}
    found = fewer_bits(accuracies(cells))
    assert found["statement"].tolist() == [f"LoRA r32, 1 bit wins over {x} at equal bytes" for x in (
        "LoRA r1, 32 bit", "LoRA r4, 8 bit", "LoRA r16, 2 bit")]  # fmt: skip
    assert found["family"].tolist() == ["primary endpoints", "secondary endpoints", "secondary endpoints"]
    first = found.iloc[0]
    assert (first.effect, first.verdict) == (pytest.approx(0.05), "holds")
    assert (first.low, first.high) == pytest.approx((0.05 - T4 * ERROR / 10, 0.05 + T4 * ERROR / 10), rel=1e-6)
    assert first.endpoint.endswith("adapter bytes 32,000 against 32,000")


# All together


def test_rule_16_holm_runs_across_claims_and_not_across_tasks():
    two = pd.concat([accuracies({(32, 1): 0.85, (1, 32): 0.9}, task=task) for task in ("digits", "counting")])
    alone = evaluate(tradeoff=two)
    assert {c.family for c in alone} == {"primary endpoints, task digits", "primary endpoints, task counting"}
    assert all(c.p_holm == c.p_value and c.statement.endswith(f"({c.task})") for c in alone)
    precise = accuracies({(32, 8): 0.9, (1, 8): 0.89, (2, 8): 0.89}, task="digits")
    together = evaluate(
        tradeoff=two, precision=precise, flatness=summary(MODELS, task="digits"), gaussianity=matrices(1.02)
    )
    digits = [c for c in together if c.family == "primary endpoints, task digits"]
    assert sorted({c.claim for c in digits}) == [1, 3, 4]
    assert len(digits) == 5
    raw = sorted(c.p_value for c in digits)
    by_hand = [max(min(1.0, (5 - j) * raw[j]) for j in range(i + 1)) for i in range(5)]
    assert sorted(c.p_holm for c in digits) == pytest.approx(by_hand)
    assert [c.claim for c in together] == sorted(c.claim for c in together)
    for c in together:
        if not math.isnan(c.p_holm):
            assert (c.verdict != "undecided") == (c.p_holm <= 0.05)


def test_one_seed_is_undecided_with_the_reason():
    found = low_bits(accuracies({(32, 8): 0.90, (1, 8): 0.899}, seeds=1))
    assert (found.verdict[0], found.n[0], math.isnan(found.p_value[0])) == ("undecided", 1, True)
    assert "1 unit(s), at least 2 are needed" in found.test[0]


def test_nothing_to_compare_gives_no_row_but_all_columns():
    assert evaluate() == []
    assert list(to_frame([]).columns)[: len(SCHEMA)] == SCHEMA
    assert low_bits(accuracies({(1, 8): 0.9})).empty
    assert fewer_bits(accuracies({(1, 32): 0.9, (32, 8): 0.9})).empty


def test_a_claim_shows_itself():
    claim = evaluate(tradeoff=accuracies({(32, 1): 0.85, (1, 32): 0.9}))[0]
    assert isinstance(claim, Claim)
    assert len(claim.to_frame()) == 1
    assert "holds" in claim._repr_html_()


def test_wrong_tables_are_one_line():
    rises, points = summary(MODELS), accuracies({(32, 8): 0.9, (1, 8): 0.89})
    cases = [
        (lambda: flatter(rises.rename(columns={"rise_nats": "rise_nat"})), "did you mean 'rise_nat'"),
        (lambda: flatter(rises.assign(radius=range(len(rises)))), "one common radius"),
        (lambda: flatter(pd.concat([rises, rises])), "found several at seed 0"),
        (lambda: evaluate(flatness=summary({**MODELS, ("Full, long", "full"): 1.0})), "one full fine-tuning"),
        (lambda: low_bits(points.assign(test_accuracy=90.0)), "between 0 and 1"),
        (lambda: low_bits(pd.concat([points, points])), "found several"),
        (lambda: near_gaussian(pd.concat([matrices(1.0)] * 2)), "found several at seed 0, tensor up"),
        (lambda: fewer_bits(points.drop(columns="adapter_bytes")), "'adapter_bytes'"),
    ]
    for call, text in cases:
        with pytest.raises(AnalysisError, match=text) as error:
            call()
        assert "\n" not in str(error.value)


def test_no_torch_is_needed():
    code = "import sys, analyses.claims; assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
