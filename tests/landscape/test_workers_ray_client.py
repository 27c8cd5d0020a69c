"""A cluster that is reached by ray://HOST:PORT, and one that is not."""

from __future__ import annotations

import pytest
from landscape_nets import Mlp, data, seeded
from ray_process import ran

from landscape import LandscapeError, Objective, Space, draw, grid, line

CLIENT = """
import socket
from ray.cluster_utils import Cluster
import torch
torch.set_num_threads(1)
from landscape_nets import Mlp, data, seeded
from landscape import Objective, Space, grid, orthogonal_pair, plane

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
head = {"num_cpus": 2, "include_dashboard": False, "ray_client_server_port": port}
cluster = Cluster(initialize_head=True, head_node_args=head)
try:
    model = seeded(Mlp)
    objective, space = Objective(model, *data(Mlp)), Space(model, ["up.weight"])
    pair, axis = orthogonal_pair(space, (0, 1)), grid(1.0, 3)
    found = plane(objective, space, *pair, axis, axis, workers=f"ray://127.0.0.1:{port}")
    assert repr(found.rows) == repr(plane(objective, space, *pair, axis, axis).rows)
finally:
    cluster.shutdown()
print("identical")
"""


@pytest.mark.parametrize("error", [ValueError("bad\naddress"), ConnectionError("bad\ntimeout"), RuntimeError("bad")])
def test_a_cluster_that_cannot_be_reached_is_one_line(monkeypatch, error):
    ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")

    def refuse(**settings):
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    model = seeded(Mlp)
    objective, space = Objective(model, *data(Mlp)), Space(model, ["up.weight"])
    with pytest.raises(LandscapeError, match="no connection to workers 'ray://nowhere:1': bad") as refused:
        line(objective, space, draw(space, 0), grid(1.0, 5), workers="ray://nowhere:1")
    assert "\n" not in str(refused.value)


FROM_THE_HEAD = "Initialization failure from server:\nTraceback (most recent call last):\nRuntimeError: no process.\n\n"
GAVE_UP = "no connection to workers 'ray://head:1': Initialization failure from server: RuntimeError: no process.$"


@pytest.mark.parametrize(("refusals", "answer"), [(3, "let in"), (4, GAVE_UP)])
def test_a_head_that_cannot_start_the_clients_process_is_asked_again(monkeypatch, refusals, answer):
    ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    asked = []

    def init(**settings):
        asked.append(settings["address"])
        raise ConnectionAbortedError(FROM_THE_HEAD) if len(asked) <= refusals else ValueError("let in")

    monkeypatch.setattr(ray, "init", init)
    model = seeded(Mlp)
    objective, space = Objective(model, *data(Mlp)), Space(model, ["up.weight"])
    with pytest.raises(LandscapeError, match=answer):
        line(objective, space, draw(space, 0), grid(1.0, 5), workers="ray://head:1")
    assert asked == 4 * ["ray://head:1"]


@pytest.mark.slow
def test_a_client_of_a_cluster_measures_what_a_serial_run_measures():
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    pytest.importorskip("grpc", reason="ray is installed without its client")
    done = ran(CLIENT)
    if "timed out during startup" in done.stderr:
        pytest.skip("ray gives its own head 30 seconds to start: the machine is too busy")
    assert done.stdout.strip().endswith("identical"), done.stderr[-2000:]
