"""What few bits cost, by numbers made up for runs that were not trained."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from analyses.bits import Bits, specs, tables


def runs(accuracy):
    """Runs of one task, by (bits, seed)."""
    return [
        SimpleNamespace(
            labels=lambda bits=bits, seed=seed: {
                "task": "t", "method": "lora", "dim": 8, "bits": bits, "seed": seed, "run": f"{bits}-{seed}",
            },
            metrics={
                "adapter_bytes": 100 * bits, "file_bytes": 100 * bits + 50, "test_accuracy": value,
                "test_loss_nats": 1 - value,
            },
        )
        for (bits, seed), value in accuracy.items()
    ]  # fmt: skip


def test_the_difference_is_paired_over_seeds():
    full, one = np.array([0.9, 0.8, 0.7]), np.array([0.88, 0.79, 0.66])
    made = {(32, i): a for i, a in enumerate(full)} | {(1, i): a for i, a in enumerate(one)}
    points, summary = tables(runs(made)).values()
    assert len(points) == 6
    base, low = summary.itertuples()
    assert (base.bits, low.bits, low.file_bytes, low.seeds) == (32, 1, 150, 3)
    assert np.isnan(base.difference)
    expected = stats.ttest_1samp(one - full, 0).confidence_interval()
    assert low.difference == pytest.approx((one - full).mean())
    assert (low.difference_low, low.difference_high) == pytest.approx(tuple(expected))
    assert low.test_accuracy_se == pytest.approx(stats.sem(one))


def test_every_seed_is_trained_at_every_number_of_bits():
    wanted = specs(["digits", "counting"], Bits(seeds=2, bits=(2, 1)))
    assert len({spec.name for spec in wanted}) == len(wanted) == 2 * 2 * 2 * 3
    assert {spec.bits for spec in wanted} == {1, 2, 32}
