"""Parts on disk and workers: whatever is killed, and wherever points are measured, the table is the serial one."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from landscape_nets import ConvNet, Mlp, TinyVit, data, seeded
from ray_process import ran
from torch import nn

from landscape import LandscapeError, Objective, Space, draw, grid, line, orthogonal_pair, plane, workers
from landscape.probe import Probe
from landscape.shards import Store, _checksum, clear
from landscape.workers import measured, open_workers

AXIS = grid(1.0, 5)


def setting(kind: type[nn.Module] = Mlp, seed: int = 0, **options: object) -> tuple[Objective, Space]:
    model = seeded(kind, seed)
    return Objective(model, *data(kind), **options), Space(model, [n for n, _ in model.named_parameters()])


def same(a: tuple[dict, ...], b: tuple[dict, ...]) -> bool:
    """Rows equal bit for bit: repr tells every float from every other, and takes NaN as equal to NaN."""
    return repr(a) == repr(b)


@pytest.mark.parametrize("kind", [TinyVit, *(pytest.param(k, marks=pytest.mark.slow) for k in (Mlp, ConvNet))])
def test_rule_2_processes_measure_what_a_serial_run_measures(kind):
    objective, space = setting(kind)
    pair = orthogonal_pair(space, (0, 1))
    serial = plane(objective, space, *pair, AXIS, AXIS)
    parallel = plane(objective, space, *pair, AXIS, AXIS, workers="2")
    assert same(serial.rows, parallel.rows)


class FromNotebook(nn.Module):
    """Its class cannot be imported by a worker."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 4)

    def forward(self, x):
        return self.layer(x)


FromNotebook.__module__ = "__main__"


def test_a_model_defined_in_a_notebook_can_be_sent():
    model = seeded(FromNotebook)
    objective = Objective(model, *data(Mlp), loss=lambda z, y: nn.functional.cross_entropy(z, y, reduction="none"))
    space = Space(model, ["layer.weight"])
    direction = draw(space, 0)
    found = line(objective, space, direction, AXIS, workers="2")
    assert same(found.rows, line(objective, space, direction, AXIS).rows)


class Fatal(Mlp):
    """Kills its process, once, at the first point away from the centre that it meets outside the parent."""

    def __init__(self, flag: str, parent: int) -> None:
        super().__init__()
        self.flag, self.parent = flag, parent
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        if self.passes > 3 and os.getpid() != self.parent and not Path(self.flag).exists():
            Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def test_a_worker_that_is_killed_is_replaced_and_its_points_done_again(tmp_path):
    model = seeded(Fatal, flag=str(tmp_path / "dead"), parent=os.getpid())
    objective, space = Objective(model, *data(Mlp)), Space(model, ["up.weight", "down.weight"])
    direction = draw(space, 0)
    found = line(objective, space, direction, grid(1.0, 21), workers="2", store=tmp_path / "parts")
    assert (tmp_path / "dead").exists(), "no worker was killed: the test shows nothing"
    (tmp_path / "dead").touch()
    assert same(found.rows, line(objective, space, direction, grid(1.0, 21)).rows)


class Hasty(Mlp):
    """In a worker, every point takes longer than a shard may."""

    def __init__(self, parent: int) -> None:
        super().__init__()
        self.parent = parent

    def forward(self, x):
        if os.getpid() != self.parent:
            workers.SHARD_SECONDS = 0.0
        return super().forward(x)


def test_a_worker_gives_back_slow_points_before_its_shard_is_whole():
    model = seeded(Hasty, parent=os.getpid())
    space = Space(model, ["up.weight"])
    probe = Probe(Objective(model, *data(Mlp)), space, [draw(space, 0)], ["alpha"])
    points = [(float(a),) for a in grid(1.0, 49)]
    assert {len(shard) for shard in workers._shards(points, 2)} == {1, 3}, "as many points as this test has"
    with probe, open_workers(probe, "2") as compute:
        shards = list(compute(points))
        assert [len(shard) for shard in shards] == 49 * [1]
        found = {point: rows for shard in shards for point, rows in shard.items()}
        assert same(tuple(found[p] for p in points), tuple(probe.rows(p) for p in points))


def test_without_ray_one_is_told_how_to_install_it_from_the_repository(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    objective, space = setting()
    with pytest.raises(LandscapeError, match=r"python -m pip install -e '\.\[cluster\]'"):
        line(objective, space, draw(space, 0), AXIS, workers="ray")


def test_wrong_workers_are_one_line():
    objective, space = setting()
    for wrong in ("0", "-1", "two", "1.5"):
        with pytest.raises(LandscapeError, match="expected workers"):
            line(objective, space, draw(space, 0), AXIS, workers=wrong)


def test_what_cannot_be_pickled_is_one_line():
    objective, space = setting()
    space.model.socket = (i for i in range(3))
    with pytest.raises(LandscapeError, match="cannot be sent"):
        line(objective, space, draw(space, 0), AXIS, workers="2")


# ---------------------------------------------------------------------------------------------------------- parts


def test_rule_27_what_is_stored_is_not_measured_again(tmp_path, monkeypatch):
    objective, space = setting()
    direction = draw(space, 0)
    whole = line(objective, space, direction, AXIS)
    first = line(objective, space, direction, AXIS[:3], store=tmp_path)
    moved: list[float] = []
    move = Space.move
    monkeypatch.setattr(Space, "move", lambda s, d, c: (moved.append(c[0]), move(s, d, c))[1])
    second = line(objective, space, direction, AXIS, store=tmp_path)
    assert moved == [0.5, 1.0]
    assert same(second.rows, whole.rows)
    assert same(first.rows, whole.rows[:3])


def test_rule_27_nan_inf_and_zero_count_as_measured(tmp_path):
    class Odd(Mlp):
        def forward(self, x):
            z = super().forward(x)
            return z * (math.nan if self.up.weight[0, 0] > 0 else 1.0)

    model = seeded(Odd)
    with torch.no_grad():
        model.up.weight.fill_(-0.5)
    objective = Objective(model, *data(Mlp), loss=lambda z, y: (z * 0).sum(1))
    space = Space(model, ["up.weight"])
    direction = draw(space, 0)
    probe = Probe(objective, space, [direction], ["alpha"])
    points = [(float(a),) for a in grid(40.0, 5)]
    store = Store(tmp_path, probe.identity())
    with open_workers(probe) as compute:
        first = measured(compute, points, store)
        assert any(math.isnan(rows[0]["loss_nats"]) for rows in first.values())
        assert any(rows[0]["loss_nats"] == 0 for rows in first.values())

        def nothing_left(todo):
            assert list(todo) == []
            return iter(())

        again = measured(nothing_left, points, store)
    assert repr(again) == repr(first)


@pytest.mark.parametrize("change", ["weights", "data", "batch_size", "direction", "version", "threads"])
def test_rule_27_another_measurement_refuses_the_parts(tmp_path, change, monkeypatch):
    objective, space = setting()
    line(objective, space, draw(space, 0), AXIS, store=tmp_path)
    if change == "weights":
        objective, space = setting(seed=1)
    elif change == "data":
        objective = Objective(space.model, *data(Mlp, seed=2))
    elif change == "batch_size":
        objective.batch_size = 7
    elif change == "version":
        monkeypatch.setattr(np, "__version__", "0.0")
    elif change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.raises(LandscapeError, match="not mixed"):
        line(objective, space, draw(space, 1 if change == "direction" else 0), AXIS, store=tmp_path)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damaged_parts_are_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("parts")
    store = Store(folder, {"a": 1})
    store.write({(0.5,): [{"alpha": 0.5, "loss_nats": float("inf")}]})
    (path,) = folder.glob("*.json")
    text = path.read_bytes()
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = data.draw(st.sampled_from([text[:at], text[:at] + b"\xff" + text[at + 1 :], b"", b"[]", b"[" * 100_000]))
    path.write_bytes(damaged)
    if damaged.strip() == text.strip():
        return
    with pytest.raises(LandscapeError) as refused:
        store.read()
    assert "\n" not in str(refused.value)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(allow_nan=True)), min_size=1, max_size=8))
def test_parts_give_back_every_bit(tmp_path_factory, values):
    store = Store(tmp_path_factory.mktemp("parts"), {})
    found = {(x,): [{"loss_nats": z}] for x, z in values}
    store.write(found)
    assert repr(store.read()) == repr(found)
    clear(store.folder, [])
    assert repr(store.read()) == repr(found), "no part of points that are not in the table"
    clear(store.folder, list(found))
    assert store.read() == {}
    assert not store.folder.exists()


PROGRAM = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from landscape_nets import Mlp, data, seeded
from landscape import Objective, Space, draw, grid, line
import landscape.workers as workers
workers.SHARD_SECONDS = 0.002
import torch
torch.set_num_threads(1)
model = seeded(Mlp)
objective, space = Objective(model, *data(Mlp)), Space(model, ["up.weight"])
print("ready", flush=True)
found = line(objective, space, draw(space, 0), grid(1.0, 801), store=Path({parts!r}))
Path({out!r}).write_text(repr(found.rows))
"""


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_rule_27_killed_at_random_moments_the_table_is_bit_identical(tmp_path, times):
    def program(parts: str, out: str) -> list[str]:
        text = PROGRAM.format(tests=str(Path(__file__).parent), parts=str(tmp_path / parts), out=str(tmp_path / out))
        return [sys.executable, "-c", text]

    root = Path(__file__).resolve().parents[2]
    subprocess.run(program("other", "serial"), cwd=root, check=True, capture_output=True)
    kills, rng = 0, random.Random(0)
    while not (tmp_path / "killed").exists():
        with subprocess.Popen(program("parts", "killed"), cwd=root, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            if kills < times:  # then it may end
                time.sleep(rng.uniform(0.0, 0.3))
                process.kill()
                kills += 1
    assert (tmp_path / "killed").read_text() == (tmp_path / "serial").read_text()
    assert len(list((tmp_path / "parts").glob("*.json"))) > 1


def test_parts_of_two_machines_are_joined_and_the_machines_named(tmp_path):
    objective, space = setting()
    direction = draw(space, 0)
    line(objective, space, direction, AXIS[::2], store=tmp_path / "one")
    line(objective, space, direction, AXIS[1::2], store=tmp_path / "two")
    for path in (tmp_path / "two").glob("*.json"):
        part = json.loads(path.read_text())
        part = {**part, "machine": "another"}
        del part["sha256"]
        (tmp_path / "one" / path.name).write_text(json.dumps({**part, "sha256": _checksum(part)}))
    joined = line(objective, space, direction, AXIS, store=tmp_path / "one")
    assert same(joined.rows, line(objective, space, direction, AXIS).rows)
    assert len(joined.provenance["machines"]) == 2


CLUSTER = """
import sys, tempfile, threading, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import ray
from ray.cluster_utils import Cluster
import torch
torch.set_num_threads(1)
from landscape_nets import Mlp, data, seeded
from landscape import Objective, Space, draw, grid, line, workers

class Slow(Mlp):
    def forward(self, x):
        workers.SHARD_SECONDS = 0.0
        time.sleep(0.05)
        return super().forward(x)

model = seeded(Slow)
objective, space = Objective(model, *data(Mlp)), Space(model, ["up.weight"])
direction, axis = draw(space, 0), grid(1.0, 81)
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1, "include_dashboard": False}})
second = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
seen = []
def on_point(done, total):
    if done >= 10 and not seen:
        seen.append(done)
        cluster.remove_node(second, allow_graceful=False)
with tempfile.TemporaryDirectory() as parts:
    found = line(objective, space, direction, axis, workers="ray", on_point=on_point, store=Path(parts))
    assert len(list(Path(parts).glob("*.json"))) == 81, "a part for every point, as slow as they are"
assert seen and seen[0] < 81, seen
for _ in range(300):
    if sum(n["Alive"] for n in ray.nodes()) == 1:
        break
    time.sleep(0.1)
else:
    raise AssertionError("both nodes are alive: no node was lost, the test shows nothing")
assert repr(found.rows) == repr(line(objective, space, direction, axis).rows)
ray.shutdown()
cluster.shutdown()
print("identical")
"""


@pytest.mark.slow
def test_a_ray_cluster_that_loses_a_node_measures_what_a_serial_run_measures():
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    done = ran(CLUSTER.format(tests=str(Path(__file__).parent)))
    assert done.stdout.strip().endswith("identical"), done.stderr[-2000:]
