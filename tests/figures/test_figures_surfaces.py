"""Surfaces say which space and run they are of; what is written in a plane overlaps nothing and stays inside it."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import synthetic_tables
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from figures import surfaces, trajectory
from figures.surfaces import panels

FULL, ADAPTER = synthetic_tables.MODELS[:2]


def shown(ax: Axes) -> list[Text]:
    """The texts inside the axes, laid out."""
    ax.get_figure(root=True).draw_without_rendering()
    return list(ax.texts)


def test_panels_of_different_spaces_name_them():
    points = synthetic_tables.surface([FULL, ADAPTER], n=5)
    assert list(panels(points)[1]) == [f"{FULL[0]}\nall weights move", f"{ADAPTER[0]}\nown tensors move"]
    assert list(panels(points.assign(space="full"))[1]) == [FULL[0], ADAPTER[0]]
    figure = surfaces.draw({"points": points})
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == list(panels(points)[1])


def test_the_first_of_several_runs_is_drawn_and_said_to_be_one():
    one = synthetic_tables.surface([FULL, ADAPTER], n=5).assign(space="full")
    second = one[one["label"] == FULL[0]].assign(seed=3, run="other", rise_nats=7.0)
    found = panels(pd.concat([second, one]))[1]
    assert list(found) == [f"{FULL[0]}\nseed 0, one of 2 runs", ADAPTER[0]]
    np.testing.assert_array_equal(found[f"{FULL[0]}\nseed 0, one of 2 runs"][2], panels(one)[1][FULL[0]][2])
    bare = pd.concat([one, one.assign(run="other")]).drop(columns="seed")
    assert list(panels(bare)[1]) == [f"{FULL[0]}\none of 2 runs", f"{ADAPTER[0]}\none of 2 runs"]
    plotted = surfaces.plot(pd.concat([second, one]), Figure().subplots())
    assert "one of 2 runs" in plotted.get_title(loc="left")
    assert surfaces.plot(one[one["label"] == FULL[0]], Figure().subplots()).get_title(loc="left").count("\n") == 0


def steep() -> pd.DataFrame:
    points = synthetic_tables.surface([FULL], n=21)
    return points.assign(rise_nats=40 * (8 * points["x"] ** 2 + points["y"] ** 2) ** 1.3)


def slope() -> pd.DataFrame:
    points = synthetic_tables.surface([FULL], n=9)
    return points.assign(rise_nats=0.3 * points["x"] + 0.2 * points["rise_nats"])


@pytest.mark.parametrize(
    "points", [synthetic_tables.surface([FULL]), steep(), slope()], ids=["round", "steep", "slope"]
)
def test_labels_of_contours_lie_inside_the_frame_and_not_over_the_centre(points):
    ax = surfaces.plot(points, Figure(figsize=(3.25, 2.4), layout="constrained").subplots())
    texts = shown(ax)
    assert len(texts) >= 3
    frame, centre = ax.get_window_extent(), ax.transData.transform((0, 0))
    for text in texts:
        box = text.get_window_extent()
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1, text.get_text()
        assert frame.y0 <= box.y0 < box.y1 <= frame.y1, text.get_text()
        assert not box.contains(*centre), text.get_text()
    assert not any(overlap(a, b) for a, b in combinations(texts, 2))


def overlap(a: Text, b: Text) -> bool:
    """Whether two texts print over each other."""
    # 0.7: the box is a line's height, with room for descenders that figures lack
    smaller = [Text.get_window_extent(t).expanded(0.9, 0.7) for t in (a, b)]  # of an annotation without its arrow
    return bool(smaller[0].overlaps(smaller[1]))


def arriving() -> pd.DataFrame:
    """Checkpoints that draw closer and closer to the last one."""
    left = 0.45 ** np.arange(8)
    x, y = 0.9 * left, 0.4 * left * (1 - left)
    names = [f"a long name of a run, epoch {i}" for i in range(8)]
    norm = np.hypot(x, y)
    return pd.DataFrame({"checkpoint": names, "x": x, "y": y, "norm": norm, "outside_share": 0.0})


@pytest.mark.parametrize("places", [synthetic_tables.trajectory()["checkpoints"], arriving()], ids=["arc", "arriving"])
def test_checkpoints_have_numbers_that_overlap_nothing_and_a_key_below(places):
    figure = trajectory.draw({"checkpoints": places, "points": synthetic_tables.surface([FULL], n=7)})
    ax = figure.axes[0]
    texts = shown(ax)
    numbers = texts[-len(places) :]
    assert [text.get_text() for text in numbers] == [str(i + 1) for i in range(len(places))]
    assert not any(overlap(a, b) for a, b in combinations(texts, 2))
    [key] = figure.legends
    said = [text.get_text() for text in key.get_texts()]
    assert said == [f"{i + 1}  {name}" for i, name in enumerate(places["checkpoint"])]
    assert key.get_window_extent().y1 < ax.xaxis.label.get_window_extent().y0
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "distance in weights, first direction", "distance in weights, second direction",
    )  # fmt: skip


def test_of_many_checkpoints_the_ends_are_numbered():
    places = pd.concat([arriving()] * 2, ignore_index=True)
    ax = trajectory.plot(places, Figure().subplots())
    assert [text.get_text() for text in ax.texts] == ["1", "16"]
    assert len(ax.get_legend().get_texts()) == 2


def test_directions_of_another_norm_measure_no_distance():
    ax = trajectory.plot(arriving().assign(norm=3.0), Figure().subplots())
    assert ax.get_xlabel() == "coordinate, first direction"
