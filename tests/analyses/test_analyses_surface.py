"""One plane however it is measured: serial, by workers, in shards, after a kill, to a requested error."""

from __future__ import annotations

import itertools
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analyses.checkpoint import open_checkpoint
from analyses.errors import AnalysisError
from analyses.noise import Noise
from analyses.options import Options
from analyses.pilot import with_samples
from analyses.surface import ANALYSIS, Plane, measure_shard
from landscape import LandscapeError, orthogonal_pair
from train.loop import fit
from train.recipe import Recipe
from train.spec import RunSpec
from train.tasks import load

OPTIONS = Options(samples=16, batch_size=16, quiet=True)
PLANE = Plane(points=5)
SPEC = RunSpec(
    task="digits", train_size=40, test_size=20, backbone="random:test_vit", img_size=32, dim=3, bits=1,
    recipe=Recipe(epochs=1, batch_size=16, lr=2e-2, warmup_epochs=0),
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    task = load("digits", train_size=40, test_size=20)
    return fit(SPEC, task, tmp_path_factory.mktemp("runs"), quiet=True).path


@pytest.fixture
def fresh(run, tmp_path):
    """The run's folder, without any tables."""
    return shutil.copytree(run, tmp_path / run.name, ignore=shutil.ignore_patterns("tables"))


@pytest.fixture(scope="module")
def serial(run):
    return ANALYSIS.measure(open_checkpoint(run, OPTIONS), OPTIONS, PLANE)["points"]


def test_rule_27_shards_join_to_the_serial_table_bit_for_bit(fresh, serial):
    checkpoint = open_checkpoint(fresh, OPTIONS)
    for shard in ("1/3", "2/3", "3/3"):
        done = measure_shard([checkpoint], OPTIONS, replace(PLANE, shard=shard), None)
        assert done.points.item() in (8, 9)
    parts = fresh / "tables" / "plane" / "parts"
    assert len(list(parts.glob("*/*.json"))) >= 3
    table = ANALYSIS.measure(checkpoint, OPTIONS, PLANE)["points"]
    assert table.to_csv() == serial.to_csv()
    assert not parts.exists()


def test_rule_14_the_pilot_looks_where_the_command_measures(fresh, capsys):
    """In the plane's own space alone, at its corners; what no number of images reaches is said."""
    checkpoint = open_checkpoint(fresh, OPTIONS)
    rise_se = 0.02
    asked = {}
    for space in ("factors", "full"):
        plane = replace(PLANE, space=space)
        asked[space] = with_samples([checkpoint], replace(OPTIONS, rise_se=rise_se), plane).samples
        moving = checkpoint.space(space)
        few = checkpoint.objectives(moving.model, ("train",), replace(OPTIONS, samples=64))["train"]
        pair = orthogonal_pair(moving, (0, 1))
        with moving:
            centre, spreads = few.evaluate(), []
            for signs in itertools.product((-1.0, 1.0), repeat=2):
                moving.move(pair, signs)
                spreads.append((few.evaluate().loss - centre.loss).std(ddof=1))
        wanted = int(np.ceil((max(spreads) / rise_se) ** 2))
        assert asked[space] == max(64, min(wanted, 32))
    with_samples([checkpoint], replace(OPTIONS, rise_se=1e-6, quiet=False), PLANE)
    assert re.search(r"at alpha 1 would take [\d,]+ images, there are 32: it is missed", capsys.readouterr().err)
    # Noise is measured on the images of the test, at levels of its own.
    with_samples([checkpoint], replace(OPTIONS, rise_se=1e-6, quiet=False), Noise(levels=(0.0, 0.05)))
    assert re.search(r"at alpha 0.05 would take [\d,]+ images, there are 20: it is missed", capsys.readouterr().err)


def test_rule_27_a_finished_table_deletes_no_part_of_another(fresh, serial):
    """Neither of another plane nor of a larger grid of the same one."""
    checkpoint = open_checkpoint(fresh, OPTIONS)
    measure_shard([checkpoint], OPTIONS, replace(PLANE, shard="1/2"), None)
    there = sorted((fresh / "tables" / "plane" / "parts").glob("*/*.json"))
    for other in (replace(OPTIONS, seed=7), OPTIONS):
        ANALYSIS.measure(checkpoint, other, replace(PLANE, points=3))
        assert set(there) <= set((fresh / "tables" / "plane" / "parts").glob("*/*.json"))
    assert ANALYSIS.measure(checkpoint, OPTIONS, PLANE)["points"].to_csv() == serial.to_csv()


def test_rule_27_a_shard_of_another_setting_is_refused(fresh):
    checkpoint = open_checkpoint(fresh, OPTIONS)
    folders = {}
    for samples in (16, 12):
        done = measure_shard([checkpoint], replace(OPTIONS, samples=samples), replace(PLANE, shard="1/2"), None)
        folders[samples] = Path(done.parts.item())
    assert folders[16] != folders[12]
    for path in folders[12].glob("*.json"):
        shutil.copy(path, folders[16] / f"theirs-{path.name}")
    with pytest.raises(LandscapeError, match="not mixed"):
        ANALYSIS.measure(checkpoint, OPTIONS, PLANE)


def test_points_of_other_settings_are_said_not_to_be_used(fresh, recwarn):
    checkpoint = open_checkpoint(fresh, OPTIONS)
    measure_shard([checkpoint], OPTIONS, replace(PLANE, shard="1/2"), None)
    measure_shard([checkpoint], OPTIONS, replace(PLANE, shard="2/2"), None)
    assert not [w for w in recwarn if "not used" in str(w.message)]
    with pytest.warns(RuntimeWarning, match="were measured with other settings .* not used"):
        ANALYSIS.measure(checkpoint, replace(OPTIONS, samples=12), PLANE)


def test_rule_2_workers_give_the_serial_table(fresh, serial):
    table = ANALYSIS.measure(open_checkpoint(fresh, OPTIONS), replace(OPTIONS, workers="2"), PLANE)["points"]
    assert table.to_csv() == serial.to_csv()


def test_a_requested_error_leaves_cells_unevaluated_and_is_in_the_provenance(fresh, serial):
    from figures.tables import read_provenance

    checkpoint = open_checkpoint(fresh, OPTIONS)
    seen = []
    tables = ANALYSIS.measure(
        checkpoint, OPTIONS, replace(PLANE, points=15, error=0.05), lambda *done: seen.append(done)
    )
    table = tables["points"]
    assert [done for done, _ in seen] == list(range(1, int(table.evaluated.sum()) // 2 + 1))
    assert 0 < table.evaluated.sum() < len(table)
    corner = table[(table.x == 1) & (table.y == 1)].reset_index()
    assert np.array_equal(corner.loss_nats, serial[(serial.x == 1) & (serial.y == 1)].loss_nats)
    facts = read_provenance(fresh / "tables" / "plane")["measured"]["factors"]["interpolation"]
    summary = tables["summary"].set_index("split").loc["train"]
    train = table[(table.split == "train") & table.evaluated]
    assert (summary.cells, summary.evaluated) == (225, len(train))
    assert summary.estimated_error_share == facts["estimated_error"]["train"]
    assert summary.highest_rise_nats == train.rise_nats.max()
    assert summary.centre_loss_nats == train[(train.x == 0) & (train.y == 0)].loss_nats.item()
    assert max(facts["estimated_error"].values()) <= 0.05
    assert facts["evaluated"] == table.evaluated.sum() / 2


def test_an_error_that_is_no_share_is_one_line():
    with pytest.raises(AnalysisError, match="expected --error to be below 1, found 5"):
        Plane(error=5.0)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", ""])
def test_a_wrong_shard_is_one_line(fresh, shard):
    with pytest.raises(AnalysisError, match="expected --shard I/N"):
        measure_shard([open_checkpoint(fresh, OPTIONS)], OPTIONS, replace(PLANE, shard=shard), None)


def test_a_shard_of_an_adaptive_surface_is_refused(fresh):
    with pytest.raises(AnalysisError, match="whole grid"):
        measure_shard([open_checkpoint(fresh, OPTIONS)], OPTIONS, replace(PLANE, shard="1/2", error=0.01), None)


def test_a_plane_along_eigenvectors_bends_by_the_eigenvalue(fresh):
    """The second difference along the first axis is eigenvalue * norm^2 (along the second a ReLU has a kink there)."""
    from figures.tables import read_provenance

    checkpoint = open_checkpoint(fresh, OPTIONS)
    spec = replace(PLANE, points=3, extent=0.005, axes="eigenvectors")
    points = ANALYSIS.measure(checkpoint, OPTIONS, spec)["points"]
    train = points[points.split == "train"].set_index(["x", "y"]).loss_nats
    measured = read_provenance(fresh / "tables" / "plane")["measured"]["factors"]
    assert abs(measured["cosine"]) < 1e-4
    first = measured["directions"][0]
    eigenvalue = float(re.search(r"eigenvector 1, (\S+) nats", first["normalisation"])[1])
    bend = (train[0.005, 0.0] - 2 * train[0.0, 0.0] + train[-0.005, 0.0]) / 0.005**2
    assert bend == pytest.approx(eigenvalue * first["norm"] ** 2, rel=0.02)


def test_killed_lines_go_on_from_their_measured_points(fresh, killed_at):
    from analyses.flatness import ANALYSIS as FLATNESS
    from analyses.flatness import Lines

    lines = Lines(directions=2, points=5)
    whole = FLATNESS.measure(open_checkpoint(fresh, OPTIONS), OPTIONS, lines)["curves"]
    shutil.rmtree(fresh / "tables")
    asked = killed_at(9)
    with pytest.raises(KeyboardInterrupt):
        FLATNESS.measure(open_checkpoint(fresh, OPTIONS), OPTIONS, lines)
    resumed = FLATNESS.measure(open_checkpoint(fresh, OPTIONS), OPTIONS, lines)["curves"]
    assert resumed.to_csv() == whole.to_csv()
    assert len(asked) == len(whole) // 2 + 1  # two splits; the point at which it was killed is asked for again
    assert not (fresh / "tables" / "lines" / "parts").exists()
