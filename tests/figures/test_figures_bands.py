"""Means and intervals of what is drawn, against literal computations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import synthetic_tables
from scipy import stats

from figures import flatness, surfaces
from figures.bands import band, head_still, ordered, over_text, own_space, require
from figures.density import floor
from figures.precision import changes
from figures.surfaces import levels, panels, span
from figures.tables import TableError


def rows(values: dict[tuple[str, int], list[float]]) -> pd.DataFrame:
    """(run, direction) -> values at alpha 0, 1, ..."""
    return pd.DataFrame(
        [
            {"run": run, "direction": d, "alpha": float(a), "rise_nats": v, "se": 0.5, "radius": 10.0 * a}
            for (run, d), line in values.items()
            for a, v in enumerate(line)
        ]
    )


def test_seeds_are_the_unit_and_a_run_with_more_directions_weighs_no_more():
    frame = rows({("s0", 0): [0, 1], ("s0", 1): [0, 3], ("s0", 2): [0, 5], ("s1", 0): [0, 7]})
    found = band(frame, "alpha", "rise_nats", se="se", at="radius")
    interval = stats.t.interval(0.95, df=1, loc=5, scale=stats.sem([3, 7]))
    assert found.over == "2 seeds"
    np.testing.assert_allclose(found.x, [0, 10])
    np.testing.assert_allclose(found.mean, [0, 5])
    np.testing.assert_allclose([found.low[1], found.high[1]], interval)


def test_one_run_has_its_interval_over_directions_and_one_direction_over_images():
    frame = rows({("s0", 0): [1], ("s0", 1): [2], ("s0", 2): [6]})
    found = band(frame, "alpha", "rise_nats", se="se")
    assert found.over == "3 directions"
    np.testing.assert_allclose([found.low[0], found.high[0]], stats.t.interval(0.95, 2, 3, stats.sem([1, 2, 6])))
    single = band(frame[frame["direction"] == 0], "alpha", "rise_nats", se="se")
    assert single.over == "images"
    np.testing.assert_allclose(single.high - single.mean, 0.5 * stats.norm.ppf(0.975), rtol=1e-6)
    assert np.isnan(band(frame[frame["direction"] == 0], "alpha", "rise_nats").low).all()
    assert over_text([found, single]) == "mean, 95 % interval over 3 directions or images"


def test_standard_errors_that_there_are_none_of_are_no_interval():
    frame = rows({("s0", 0): [1, 2]}).assign(se=np.nan)
    assert over_text([band(frame, "alpha", "rise_nats", se="se")]) == ""


def test_every_row_of_the_radii_shows_all_of_its_lines():
    """Rows share their columns' axes, and the spaces of the lower ones may reach further."""
    tables = synthetic_tables.flatness()
    curves = tables["curves"]
    further = curves["space"] == "full"
    assert set(curves["space"]) == {"factors", "full"}
    curves.loc[further, "logit_radius"] *= 5
    figure = flatness.draw(tables)
    for ax in figure.axes:
        left, right = ax.get_xlim()
        assert left == 0
        for drawn in ax.get_lines():
            assert np.nanmax(drawn.get_xdata()) <= right


def test_the_axes_say_which_plane_it_is():
    points = synthetic_tables.surface(n=5)
    for axes, said in (("random", "α, first direction"), ("eigenvectors", "α, first eigenvector")):
        figure = surfaces.draw({"points": points.assign(axes=axes)})
        assert {ax.get_xlabel() for ax in figure.axes} - {""} == {said}


def test_a_surface_of_nothing_but_nan_says_so():
    with pytest.raises(TableError, match="inf or NaN in 8 of 9 cells"):
        span([np.where(np.eye(3)[1] * np.eye(3)[1][:, None] > 0, 0.0, np.nan)])


def test_rule_6_a_nan_or_infinity_makes_its_whole_point_so():
    frame = rows({("s0", 0): [1, np.nan, np.inf], ("s1", 0): [2, 1, 1]})
    found = band(frame, "alpha", "rise_nats")
    assert found.mean[0] == 1.5
    assert np.isnan(found.mean[1])
    assert np.isinf(found.mean[2])


def test_missing_columns_and_rows_are_named():
    frame = pd.DataFrame({"alhpa": [1.0]})
    with pytest.raises(TableError, match=r"'alpha' \(did you mean 'alhpa'\?\)"):
        require(frame, "curves", ["alpha"])
    with pytest.raises(TableError, match="rows"):
        require(frame.head(0), "curves", ["alhpa"])
    assert require(frame, "curves", ["alhpa"])["label"].tolist() == [""]


def test_full_fine_tuning_stands_among_the_own_tensors():
    frame = pd.DataFrame({"method": ["full", "lora", "lora"], "space": ["full", "factors", "full"], "v": [1, 2, 3]})
    assert own_space(frame).to_numpy().tolist()[3:] == [["full", "factors", 1]]
    alone = frame[frame["method"] == "full"]
    assert own_space(alone) is alone


def test_head_rows_and_order():
    frame = pd.DataFrame({"head": [True, False], "space": ["zz", "full"]})
    assert head_still(frame)["head"].tolist() == [False]
    assert len(head_still(frame[:1])) == 1
    assert ordered(frame, "space", ("factors", "full")) == ["full", "zz"]


def test_precision_changes_are_paired_by_seed():
    frame = pd.DataFrame(
        {
            "method": "lora",
            "dim": 8,
            "bits": [32, 32, 1, 1],
            "seed": [0, 1, 1, 2],
            "test_accuracy": [0.9, 0.8, 0.7, 0.1],
        }
    )
    found = changes(frame)
    assert found["seed"].tolist() == [1]
    np.testing.assert_allclose(found["change"], [-0.1])


def test_levels_are_shared_and_go_1_2_5():
    flat, sharp = np.array([[0.0, 0.011], [np.nan, 0.3]]), np.array([[0.0, 7.0], [np.inf, 2.0]])
    assert levels([flat, sharp]) == [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
    assert levels([np.array([[0.0, 7.0, 1e-6]])])[0] == 0.01
    assert levels([np.array([[0.0, 0.9, 7.4]])]) == [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0], (
        "a basin in a plateau"
    )
    with pytest.raises(TableError, match="changes"):
        levels([np.zeros((2, 2))])


def test_a_surface_that_sinks_below_its_centre_is_drawn_to_its_lowest_cell():
    saddle, basin = np.array([[-0.3, 0.1], [np.nan, 0.4]]), np.array([[0.0, 0.4]])
    assert levels([saddle, basin]) == [-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4]
    assert span([saddle, basin]) == (-0.3, 0.4)
    assert span([np.array([[-0.01, 0.4]])]) == (0.0, 0.4), "noise around a minimum is not a slope"
    assert levels([np.array([[-0.2, 0.0]])])[0] == -0.2


def test_a_surface_is_put_back_on_its_grid_in_any_order():
    x, y = np.meshgrid([-1.0, 0.0, 2.0], [-3.0, 4.0])
    frame = pd.DataFrame({"label": "a", "x": x.ravel(), "y": y.ravel(), "rise_nats": (10 * x + y).ravel()})
    chosen, found = panels(frame.sample(frac=1, random_state=0).iloc[:-1])
    xs, ys, z = found["a"]
    assert (chosen, xs.tolist(), ys.tolist()) == ("", [-1, 0, 2], [-3, 4])
    missing = np.isnan(z)
    assert missing.sum() == 1
    np.testing.assert_array_equal(z[~missing], (10 * x + y)[~missing])


def test_one_eigenvalue_of_many_millions_is_not_below_the_axis():
    x = np.linspace(-10, 60, 701)
    one = 1e-9 * np.exp(-((x - 50) ** 2) / 2)
    frame = pd.DataFrame({"label": "a", "eigenvalue_nats": x, "density": np.exp(-(x**2) / 2) + one})
    assert floor(frame) < 1e-9 < 1e-7
    assert floor(frame.assign(density=np.exp(-(x**2) / 2))) == 1e-7
