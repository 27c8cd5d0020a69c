"""The rise at a common radius, where the curve is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from landscape import LandscapeError, reach, rise_at


def curve(alphas: np.ndarray, rise: np.ndarray, logit: np.ndarray | None = None) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "alpha": alphas,
            "effective_radius": np.abs(alphas) / 2,
            "logit_radius": np.abs(alphas) ** 2 if logit is None else logit,
            "rise_nats": rise,
            "split": "train",
        }
    )


ALPHAS = np.linspace(-1, 1, 21)


def test_rule_12_points_of_the_line_are_met_exactly_under_each_radius():
    f = curve(ALPHAS, ALPHAS**2)
    assert rise_at(f, "alpha", 1.0) == 1.0
    assert rise_at(f, "effective", 0.25) == pytest.approx(0.25, rel=1e-12)
    assert rise_at(f, "logit", 0.25) == pytest.approx(0.25, rel=1e-12)
    assert rise_at(f, "alpha", 0.0) == 0.0


def test_between_points_a_parabola_is_close_and_monotone():
    f = curve(ALPHAS, ALPHAS**2)
    radii = np.linspace(0, 1, 101)
    found = np.array([rise_at(f, "alpha", r) for r in radii])
    np.testing.assert_allclose(found, radii**2, atol=1.5e-3)
    assert (np.diff(found) >= 0).all()


def test_the_two_sides_are_averaged_and_the_order_of_rows_is_free():
    f = curve(ALPHAS, np.where(ALPHAS < 0, 3 * ALPHAS**2, ALPHAS**2)).sample(frac=1, random_state=0)
    assert rise_at(f, "alpha", 0.5) == pytest.approx(0.5, rel=1e-12)
    assert rise_at(f[f.alpha >= 0], "alpha", 0.5) == pytest.approx(0.25, rel=1e-12)
    assert rise_at(f[f.alpha < 0], "alpha", 0.5) == pytest.approx(0.75, rel=1e-12)


def test_the_first_passage_counts_where_a_radius_falls_again():
    alphas = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    f = curve(alphas, np.array([0.0, 1.0, 2.0, 50.0, 3.0]), np.array([0.0, 1.0, 2.0, 1.5, 3.0]))
    assert rise_at(f, "logit", 1.0) == 1.0
    assert rise_at(f, "logit", 1.5) == pytest.approx(1.5, rel=1e-12)  # not the 50 of the way back
    assert reach(f, "logit") == 3.0


def test_reach_is_that_of_the_shorter_side():
    f = curve(np.array([-0.5, 0.0, 1.0]), np.array([1.0, 0.0, 1.0]))
    assert reach(f, "alpha") == 0.5
    with pytest.raises(LandscapeError, match=r"from 0 to 0\.5, found 0\.7"):
        rise_at(f, "alpha", 0.7)


def test_rule_6_what_is_not_finite_stays_not_finite_but_does_not_spoil_what_comes_before():
    f = curve(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, math.inf, 9.0]))
    assert rise_at(f, "alpha", 1.0) == 1.0
    assert rise_at(f, "alpha", 0.5) == pytest.approx(0.5)
    for beyond in (1.5, 2.0, 3.0):
        assert math.isnan(rise_at(f, "alpha", beyond))


def test_wrong_frames_are_one_line():
    f = curve(ALPHAS, ALPHAS**2)
    with pytest.raises(LandscapeError, match="nearest: 'effective'"):
        rise_at(f, "efective", 0.1)
    with pytest.raises(LandscapeError, match="rows of one line, found 2 values of 'split'"):
        rise_at(pd.concat([f, f.assign(split="test")]), "alpha", 0.1)
    with pytest.raises(LandscapeError, match="beside the centre"):
        rise_at(f[f.alpha == 0], "alpha", 0.0)


def test_a_broken_point_on_the_way_to_a_logit_radius_is_not_stepped_over():
    """Its loss and radius are NaN, as those of an interpolated point's radius alone are: that one is."""
    alphas = np.array([-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3])
    frame = pd.DataFrame({"alpha": alphas, "logit_radius": abs(alphas), "rise_nats": alphas**2})
    frame.loc[[1, 5], "logit_radius"] = np.nan
    assert rise_at(frame, "logit", 0.25) == pytest.approx(0.0625, abs=2e-3)
    frame.loc[[1, 5], "rise_nats"] = np.nan
    assert np.isnan(rise_at(frame, "logit", 0.25))
    assert rise_at(frame, "logit", 0.1) == pytest.approx(0.01)
