"""Which GPU a worker sees, and that what lay on another one is loaded there; without a GPU."""

from __future__ import annotations

import pickle

import pytest
import torch
from landscape_nets import Mlp, seeded

from landscape import gpus


@pytest.mark.parametrize(
    ("count", "visible", "expected"),
    [
        (2, "2,3", ["2", "3"]),
        (2, " 5 , GPU-1a2b ", ["5", "GPU-1a2b"]),
        (1, "3,-1,2", ["3"]),
        (3, None, ["0", "1", "2"]),
        (3, "", ["0", "1", "2"]),
        (0, None, []),
    ],
)
def test_workers_take_the_gpus_of_the_allocation(count, visible, expected):
    assert gpus.names(count, visible) == expected


def test_a_device_of_the_parent_is_the_first_gpu_of_a_worker():
    assert gpus.load(pickle.dumps(torch.device("cuda:1"))) == torch.device("cuda:0")
    assert gpus.load(pickle.dumps(torch.device("cpu"))) == torch.device("cpu")


def test_weights_on_another_gpu_are_asked_for_on_the_first(monkeypatch):
    model, asked = seeded(Mlp), []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: (asked.append(k["map_location"]), real(*a, **k))[1])
    loaded = gpus.load(pickle.dumps(model))
    assert asked
    assert all(place["cuda:1"] == place["cuda:7"] == "cuda:0" for place in asked)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
