"""The dimension that reaches a share of full fine-tuning: planted curves, a planted search, and tiny runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from analyses import dimension
from analyses.crossing import answers, crossing, points
from analyses.dimension import Ladder
from analyses.errors import AnalysisError
from figures.tables import read_table
from train.build import load_task
from train.loop import fit
from train.recipe import Recipe
from train.run import Run
from train.spec import RunSpec

BASE = RunSpec(
    task="digits", train_size=40, test_size=20, backbone="random:test_vit", img_size=32, method="full",
    recipe=Recipe(epochs=1, batch_size=16, lr=0.01, warmup_epochs=0),
)  # fmt: skip
DIMS = (10, 30, 100, 300, 1000, 3000)


def planted(d90: float, seeds=(0, 1, 2), full=0.9, head=0.5) -> pd.DataFrame:
    """Accuracy that grows with log d and is .9 of full fine-tuning's exactly at d90, times a seed's own factor."""
    rows = []
    for seed in seeds:
        own = d90 * 2.0 ** (seed - 1)
        models = [("full", 0, full, 4e6), ("linear", 0, head, 0), ("lora", 4, 0.86, 3000), ("lora", 1, 0.83, 900)]
        models += [("subspace", d, 0.9 * full + 0.02 * math.log(d / own), 4 * d) for d in DIMS]
        rows += [
            {
                "task": "digits", "label": f"{method} {dim}", "method": method, "dim": dim, "bits": 32, "seed": seed,
                "run": f"{method}{dim}.{seed}", "scale": 1.0, "lr": 0.01, "weights_lr": 0.01,
                "adapter_bytes": size, "head_bytes": 40, "test_accuracy": accuracy,
            }
            for method, dim, accuracy, size in models
        ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("d90", [12.0, 55.0, 777.7])
def test_a_planted_dimension_is_found_exactly_where_the_curve_is_linear_in_log_d(d90):
    values = [0.3 + 0.05 * math.log(d) for d in DIMS]
    found = crossing(DIMS, values, 0.3 + 0.05 * math.log(d90))
    assert found.dim_interpolated == pytest.approx(d90, rel=1e-10)
    assert found.dim_below == max(d for d in DIMS if d < d90)
    assert found.dim_reached == min(d for d in DIMS if d >= d90)
    assert found.status == "reached"


def test_a_rung_that_meets_the_target_is_at_it_and_curves_without_a_bracket_say_so():
    assert crossing([10, 100], [0.2, 0.5], 0.5).dim_interpolated == pytest.approx(100)
    low = crossing([10, 100], [0.2, 0.4], 0.5)
    assert (low.dim_below, low.status) == (100, "not reached up to 100")
    assert math.isnan(low.dim_reached)
    assert math.isnan(low.dim_interpolated)
    high = crossing([10, 100], [0.6, 0.7], 0.5)
    assert (high.dim_reached, high.status) == (10, "reached by the smallest, 10")
    assert math.isnan(high.dim_below)
    head = crossing([0, 10, 100], [0.4, 0.6, 0.7], 0.5)
    assert (head.dim_below, head.dim_reached) == (0, 10)
    assert math.isnan(head.dim_interpolated)
    assert "dimension 0" in head.status
    lost = crossing([10, 100, 1000], [0.4, 0.6, 0.45], 0.5)
    assert (lost.dim_below, lost.dim_reached) == (1000, 100)
    assert lost.dim_interpolated == pytest.approx(10**1.5)
    assert lost.status == "reached, and lost again up to 1000"


def test_the_answer_has_each_seeds_dimension_and_their_interval_in_log_d():
    table = answers(planted(80.0), classes=10, share=0.9).set_index(["yardstick", "model", "seed"])
    rows = table.loc["of_full"]
    assert rows.loc["subspace"].loc[["0", "1", "2"], "dim_interpolated"].to_list() == pytest.approx([40, 80, 160])
    every = rows.loc[("subspace", "all")]
    assert (every.dim_below, every.dim_reached, every.bytes) == (30, 100, 400)
    assert every.dim_interpolated == pytest.approx(80)
    # t with two degrees of freedom: the logs are log 80 and log 2 to either side, s.e. log 2 / sqrt(3)
    reach = 4.302652729911275 * math.log(2) / math.sqrt(3)
    assert (every.dim_low, every.dim_high) == pytest.approx((80 * math.exp(-reach), 80 * math.exp(reach)))
    assert rows.loc[("adapters", "all"), ["bytes", "label"]].to_list() == [900, "lora 1"]
    assert rows.loc[("full", "all"), "bytes"] == 4e6


def test_each_yardstick_has_its_floor():
    frame = planted(80.0)
    table = answers(frame, classes=10, share=0.9).query("seed == 'all' and model == 'subspace'")
    # floor + .9 (.9 - floor) for the floors 0, .1 and .5
    assert table["target_accuracy"].to_list() == pytest.approx([0.81, 0.82, 0.86])
    row = points(frame, 10).query("dim == 4").iloc[0]
    assert row.share_of_full == pytest.approx(0.86 / 0.9)
    assert row.share_above_chance == pytest.approx(0.76 / 0.8)
    assert row.share_above_head == pytest.approx(0.36 / 0.4)
    assert (row.n_seeds, row.bytes) == (3, 3000)


def test_what_is_not_reached_and_what_cannot_be_asked_is_said():
    table = answers(planted(1e7), classes=10, share=0.9).query("yardstick == 'of_full' and model == 'subspace'")
    assert (table["status"] == "not reached up to 3000").all()
    assert table[["dim_interpolated", "bytes", "dim_low"]].isna().all(axis=None)
    worse = answers(planted(80.0, full=0.5, head=0.6), classes=10, share=0.9).query("yardstick == 'above_head'")
    assert set(worse["status"]) == {"full fine-tuning is not above the floor"}
    alone = planted(80.0, seeds=(1,)).query("method != 'lora'")
    alone = answers(alone, classes=10, share=0.9).query("yardstick == 'of_full'").set_index(["model", "seed"])
    assert alone.loc[("adapters", "all"), "status"] == "no such run given"
    assert alone.loc[("subspace", "all"), "dim_interpolated"] == pytest.approx(80)
    assert np.isnan(alone.loc[("subspace", "all"), "dim_high"]), "one seed has no interval"


def pretended(spec: RunSpec) -> SimpleNamespace:
    """A run whose validation split likes scale 3 best at dimension 10 and scale 1 at 30; the test split the reverse."""
    wanted = {10: 3.0, 30: 1.0}.get(spec.dim, 1.0)
    liked = spec.scale == wanted
    metrics = {"val_accuracy": 0.8 if liked else 0.6, "val_loss_nats": 1.0, "test_accuracy": 0.5 if liked else 0.9}
    return SimpleNamespace(path=Path(spec.name), spec=spec, metrics=metrics)


def test_the_scale_is_chosen_on_validation_at_the_first_seed_and_kept_for_the_others():
    asked = []

    def train(specs):
        asked.extend(specs)
        return [pretended(spec) for spec in specs]

    given = [pretended(BASE), pretended(replace(BASE, method="lora", dim=2))]
    compared, search = dimension.trained(given, Ladder(dims=(10, 30), scales=(1.0, 3.0), seeds=(0, 4)), train)
    of = [(run.spec.method, run.spec.dim, run.spec.scale, run.spec.seed) for run in compared]
    assert of[:5] == [("full", 0, 1, 0), ("full", 0, 1, 4), ("linear", 0, 1, 0), ("linear", 0, 1, 4), ("lora", 2, 1, 0)]
    assert of[5:] == [("subspace", d, s, seed) for seed in (0, 4) for d, s in ((10, 3.0), (30, 1.0))]
    assert len(search) == 4
    assert BASE not in asked, "a run that was given is not trained again"
    assert len(asked) == len(set(asked)) == 3 + 4 + 2
    assert all(spec.recipe == BASE.recipe and spec.task == BASE.task for spec in asked)


@pytest.mark.parametrize(
    ("ladder", "protocol", "what"),
    [
        (Ladder(dims=()), "validation", "dimensions above zero, each once, found none"),
        (Ladder(dims=(5, 5)), "validation", "each once, found 5, 5"),
        (Ladder(scales=(0.0,)), "validation", "scales above zero"),
        (Ladder(share=0.0), "validation", "--share above 0"),
        (Ladder(), "paper", "no validation split"),
    ],
)
def test_impossible_ladders_are_refused_before_anything_is_trained(ladder, protocol, what):
    with pytest.raises(AnalysisError, match=what):
        dimension.trained([pretended(replace(BASE, protocol=protocol))], ladder, lambda specs: pytest.fail("trained"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """All the runs that the command asks for, trained here: no worker has to start."""
    out, task, cache = tmp_path_factory.mktemp("dimension"), load_task(BASE), {}
    subspaces = [replace(BASE, method="subspace", dim=d, scale=s) for d in (2, 40) for s in (1.0, 4.0)]
    for spec in (BASE, replace(BASE, method="linear"), replace(BASE, method="lora", dim=2), *subspaces):
        fit(spec, task, out / "runs", quiet=True, cache=cache)
    return out


def test_the_command_finds_its_runs_and_writes_tables_and_figure(runs, command):
    given = [runs / "runs" / BASE.name, runs / "runs" / replace(BASE, method="lora", dim=2).name]
    words = ["--dims", "2", "40", "--scales", "1", "4", "--out", runs, "--workers", "1", "--json"]
    done = command("analyses.dimension", *given, *words)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 3 * 4
    table = read_table(runs / "tables" / "dimension", "points").frame.set_index("method")
    assert table.loc["subspace", "bytes"].to_list() == [8, 160], "four bytes a coordinate"
    assert table.loc["subspace", "weights_lr"].to_list() == (0.01 * table.loc["subspace", "scale"]).to_list()
    for method in ("full", "lora", "linear"):
        run = Run.open(runs / "runs" / replace(BASE, method=method, dim=2).name)
        row = table.loc[method]
        assert (row.bytes, row.accuracy) == (run.metrics["adapter_bytes"], run.metrics["test_accuracy"])
    search = read_table(runs / "tables" / "dimension", "search").frame
    best = search.sort_values(["val_accuracy", "val_loss_nats"], ascending=[False, True]).groupby("dim").head(1)
    assert sorted(search.loc[search["chosen"], "run"]) == sorted(best["run"])
    assert "test_accuracy" not in search
    assert (runs / "figures" / "dimension.png").stat().st_size > 5000


def test_runs_that_cannot_be_compared_are_one_line(runs, command, tmp_path):
    full = runs / "runs" / BASE.name
    other = fit(replace(BASE, train_size=41), load_task(replace(BASE, train_size=41)), tmp_path, quiet=True)
    lora = runs / "runs" / replace(BASE, method="lora", dim=2).name
    for given, what in (((lora,), "found none among 1"), ((full, other.path), "train_size"), ((full, full), "twice")):
        done = command("analyses.dimension", *given, "--out", tmp_path)
        assert done.returncode == 2
        assert what in done.stderr
        assert done.stderr.count("\n") == 1
