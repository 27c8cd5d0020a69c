"""Several checkpoints in one space: ways between them, planes through them, and the commands."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from analyses import connectivity, trajectory
from analyses.checkpoint import open_checkpoint
from analyses.errors import AnalysisError
from analyses.options import Options
from analyses.together import before_training, check_rest, names, one_space
from figures.tables import read_table
from landscape import LandscapeError
from train import methods
from train.loop import fit
from train.recipe import Recipe
from train.run import Run
from train.spec import RunSpec
from train.tasks import load

OPTIONS = Options(samples=16, batch_size=8, quiet=True)
BASE = RunSpec(
    task="digits", train_size=40, test_size=20, backbone="random:test_vit", img_size=32, dim=3,
    recipe=Recipe(epochs=1, batch_size=16, lr=2e-2, warmup_epochs=0),
)  # fmt: skip
SPECS = {
    **{f"lora{rank}.{seed}": replace(BASE, method="lora", dim=rank, seed=seed) for rank, seed in ((3, 0), (2, 0))},
    "lora1bit": replace(BASE, method="lora", bits=1),
    "adaptformer": BASE,
    "adaptformer1bit": replace(BASE, bits=1),
    "wide": replace(BASE, dim=5),
    "full": replace(BASE, method="full"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """Runs on one backbone: the random one is drawn from the run's seed, so all have seed 0."""
    task, out, cache = load("digits", train_size=40, test_size=20), tmp_path_factory.mktemp("runs"), {}
    return {name: fit(spec, task, out, quiet=True, cache=cache) for name, spec in SPECS.items()}


@pytest.fixture
def opened(runs):
    return lambda *wanted: [open_checkpoint(runs[name].path, OPTIONS) for name in wanted]


def loss_by_hand(checkpoint, split: str) -> float:
    x, y = checkpoint.data(split, OPTIONS.samples)
    with torch.no_grad():
        log_p = torch.log_softmax(checkpoint.model(x).double(), dim=1)
    return -log_p[torch.arange(len(y)), y].mean().item()


@pytest.mark.parametrize(
    ("wanted", "space"),
    [
        (("lora3.0", "lora2.0"), "merged"),
        (("lora2.0", "lora1bit"), "merged"),
        (("lora3.0", "full"), "full"),
        (("adaptformer", "adaptformer1bit"), "factors"),
    ],
)
def test_rule_11_ends_of_different_ranks_methods_and_bits_meet_in_one_space(opened, wanted, space, tmp_path):
    pair = opened(*wanted)
    found, facts = connectivity.compute(pair, OPTIONS, connectivity.Ways(points=3, steps=2), tmp_path)
    ways = found["ways"]
    assert set(ways.space) == {space}
    assert set(ways.way) == {"straight line", "Bezier curve of degree 2"}
    for end, checkpoint in zip((0.0, 1.0), pair, strict=True):
        for split in ("train", "test"):
            loss = ways[(ways.alpha == end) & (ways.split == split)].loss_nats.to_numpy()
            # Folding W0 + s B A in float32 rounds.
            assert loss == pytest.approx(loss_by_hand(checkpoint, split), abs=1e-5)
    assert set(found["barriers"].split) == {"train", "test"}
    assert (found["barriers"].value >= 0).all()
    assert facts["measured"]["straight line"]["space"]["head"]


def test_the_network_is_as_before_and_the_plane_of_three_holds_all_of_them(opened, tmp_path):
    three = opened("lora3.0", "lora2.0", "lora1bit")
    space, states = one_space(three, "auto", centre=0)
    before = {name: w.clone() for name, w in space.model.state_dict().items()}
    spec = connectivity.Ways(points=2, steps=0, plane_points=3)
    found, facts = connectivity.compute(three, OPTIONS, spec, tmp_path)
    assert all(torch.equal(w, before[name]) for name, w in space.model.state_dict().items())
    places = found["checkpoints"].set_index("checkpoint")
    moves = [torch.cat([(s[n] - states[0][n]).flatten() for n in space.names]).double() for s in states]
    assert places.norm.to_numpy() == pytest.approx([float(m.norm()) for m in moves], rel=1e-6)
    assert (places.outside_share < 1e-9).all()
    assert facts["measured"]["plane"]["explained_share"] == pytest.approx(1)
    assert len(found["points"]) == 9 * 2


def test_the_trajectory_is_that_of_the_merged_matrices(opened, tmp_path):
    """Against a dense decomposition of W0 + s B A by hand, the last checkpoint as the centre, the start in front."""
    three = opened("lora3.0", "lora1bit", "lora2.0")
    found, facts = trajectory.compute(three, OPTIONS, trajectory.View(points=3, start=True), tmp_path)
    lora = methods.get("lora")
    networks = [lora.merge(c.model) for c in (before_training(three[-1]), *three)]
    wanted = [*lora.merged_names(networks[0]), *methods.head_names(networks[0])]
    rows = np.stack(
        [
            np.concatenate([dict(m.named_parameters())[n].detach().double().numpy().ravel() for n in wanted])
            for m in networks
        ]
    )
    moves = rows - rows[-1]
    u, s, _ = np.linalg.svd(moves, full_matrices=False)
    table = found["checkpoints"]
    assert list(table.checkpoint) == names([before_training(three[-1]), *three])
    assert table.checkpoint[0] == "before training"
    np.testing.assert_allclose(np.abs(table.x), np.abs(u[:, 0] * s[0]), rtol=1e-4, atol=1e-6)
    assert facts["measured"]["explained_share"] == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), rel=1e-6)
    inside = (table[["x", "y"]] ** 2).sum(axis=1)
    np.testing.assert_allclose((1 - table.outside_share) * table.norm**2, inside, rtol=1e-5, atol=1e-9)
    centre = found["points"].query("x == 0 and y == 0 and split == 'test'").loss_nats.item()
    assert centre == pytest.approx(loss_by_hand(three[-1], "test"), abs=1e-5)


def test_before_training_is_the_network_that_training_started_from(opened, runs):
    from train.build import build

    for name in ("lora3.0", "adaptformer1bit", "full"):
        (checkpoint,) = opened(name)
        start, fresh = before_training(checkpoint), build(runs[name].spec, 10).eval()
        x = checkpoint.data("test", 4)[0]
        with torch.no_grad():
            assert torch.equal(start.model(x), fresh(x))


@pytest.mark.parametrize(
    ("wanted", "kind", "text"),
    [
        (("lora3.0", "lora2.0"), "factors", "have no space 'factors' in common"),
        (("adaptformer", "wide"), "auto", "have no space 'factors' in common"),
        (("adaptformer", "lora2.0"), "auto", "have no space 'factors' in common"),
        (("adaptformer", "wide"), "merged", "no merged space"),
    ],
)
def test_checkpoints_without_a_common_space_are_one_line(opened, wanted, kind, text):
    with pytest.raises(AnalysisError, match=text) as error:
        one_space(opened(*wanted), kind, centre=0)
    assert "\n" not in str(error.value)


def test_what_differs_but_does_not_move_is_refused(opened):
    pair = opened("adaptformer", "adaptformer1bit")
    with torch.no_grad():
        pair[1].model.blocks[0].mlp.fc1.weight += 0.1
    space, states = one_space(pair, "auto", centre=0)
    with pytest.raises(AnalysisError, match=r"differs in blocks.0.mlp.fc1.weight, which stays .*--space full"):
        check_rest(space, states, pair)
    check_rest(*one_space(pair, "full", centre=0), pair)


def test_three_on_one_line_are_refused_before_anything_is_measured(opened, monkeypatch, tmp_path):
    from landscape import connectivity as ways

    first, second = opened("lora3.0", "lora2.0")
    monkeypatch.setattr(ways, "interpolate", lambda *_, **__: pytest.fail("measured what is refused afterwards"))
    with pytest.raises(LandscapeError, match="span a plane, found all on one line"):
        connectivity.compute([first, second, replace(second)], OPTIONS, connectivity.Ways(points=3, steps=2), tmp_path)


def test_figures_found_that_cannot_be_drawn_leave_the_result_and_exit_code_0(runs, command, tmp_path):
    from figures.tables import write_tables

    cells = [{"label": "a", "x": x, "y": y, "rise_nats": np.nan} for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0)]
    for place in ("damaged", "other"):
        write_tables(tmp_path / place / "tables" / "surface", {"points": pd.DataFrame(cells)}, {})
    (tmp_path / "damaged" / "tables" / "surface" / "points.csv").write_text("x\n1\n")
    arguments = ("--samples", "16", "--points", "3", "--quiet", "--out", tmp_path)
    done = command("analyses.surface", runs["lora3.0"].path, *arguments)
    assert done.returncode == 0
    assert len(list(csv.DictReader(io.StringIO(done.stdout)))) == 2
    lines = done.stderr.splitlines()
    assert [line.split(" not drawn: ")[0] for line in lines] == ["warning: damaged/surface", "warning: other/surface"]
    assert lines[1].endswith("the loss is inf or NaN in 9 of 9 cells")
    assert (tmp_path / "figures" / "surfaces.pdf").exists()


def test_a_figure_of_its_own_that_cannot_be_drawn_leaves_the_result_too(runs, command, tmp_path, monkeypatch):
    from figures import connectivity as figure
    from figures.tables import TableError

    def refuse(tables):
        raise TableError("no finite loss")

    monkeypatch.setattr(figure, "draw", refuse)
    paths = [runs[name].path for name in ("lora3.0", "lora2.0")]
    arguments = ("--samples", "16", "--points", "3", "--steps", "0", "--quiet", "--out", tmp_path)
    done = command("analyses.connectivity", *paths, *arguments)
    assert done.returncode == 0
    assert [row["split"] for row in csv.DictReader(io.StringIO(done.stdout))] == ["train", "test"]
    assert done.stderr == "warning: connectivity not drawn: no finite loss\n"


def test_the_commands(runs, tmp_path, capsys):
    options = replace(OPTIONS, out=tmp_path)
    three = tuple(runs[name].path for name in ("lora3.0", "lora2.0", "lora1bit"))
    connectivity.main(three, options, connectivity.Ways(points=3, steps=2, plane_points=3))
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["way"], row["split"]) for row in rows] == [
        (way, split) for way in ("straight line", "Bezier curve of degree 2") for split in ("train", "test")
    ]
    assert {"connectivity.pdf", "connectivity_trajectory.pdf"} <= {p.name for p in (tmp_path / "figures").iterdir()}
    trajectory.main(three, options, trajectory.View(points=3))
    first = capsys.readouterr().out
    assert len(list(csv.DictReader(io.StringIO(first)))) == 3
    assert (tmp_path / "figures" / "trajectory.pdf").exists()
    written = (tmp_path / "tables" / "trajectory" / "provenance.json").read_bytes()
    trajectory.main(three, options, trajectory.View(points=3))  # finds the finished table
    assert capsys.readouterr().out == first
    assert (tmp_path / "tables" / "trajectory" / "provenance.json").read_bytes() == written


def test_a_killed_trajectory_goes_on_with_the_point_it_was_at(runs, tmp_path, capsys, killed_at):
    asked = killed_at(5)
    three = tuple(runs[name].path for name in ("lora3.0", "lora2.0", "lora1bit"))
    options, view = replace(OPTIONS, out=tmp_path), trajectory.View(points=3)
    with pytest.raises(KeyboardInterrupt):
        trajectory.main(three, options, view)
    trajectory.main(three, options, view)
    assert len(asked) == 9 + 1, "the point at which it was killed is asked for again"
    assert not (tmp_path / "tables" / "trajectory" / "parts").exists()
    whole = replace(options, out=tmp_path / "whole")
    trajectory.main(three, whole, view)
    points = [read_table(place / "tables" / "trajectory", "points").frame for place in (tmp_path, whole.out)]
    assert points[0].to_csv() == points[1].to_csv()


def test_bad_input_is_one_line_and_exit_2(runs, tmp_path):
    options, a, b = replace(OPTIONS, out=tmp_path), runs["lora3.0"].path, runs["lora2.0"].path
    for call, text in [
        (lambda: connectivity.main((a,), options), "expected two checkpoints, or three for a plane, found 1"),
        (lambda: trajectory.main((a, b), options), "expected three checkpoints or more"),
        (lambda: connectivity.main((a, b), options, connectivity.Ways(points=1)), "at least 2, found 1"),
        (lambda: trajectory.main((a, b, b), options), "have one name"),
        (lambda: trajectory.main((a, b, b), replace(options, rise_se=0.1)), "takes --samples"),
    ]:
        with pytest.raises((AnalysisError, LandscapeError), match=text) as error:
            call()
        assert error.value.exit_code == 2
        assert "\n" not in str(error.value)
