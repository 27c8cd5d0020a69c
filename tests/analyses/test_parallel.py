from __future__ import annotations

import operator
import time

import pytest

from analyses.parallel import each


def test_results_come_in_the_order_of_the_items():
    heard = []
    assert each(operator.neg, [3, 1, 2], workers=2, on_done=heard.append) == [-3, -1, -2]
    assert sorted(heard) == [1, 2, 3]


def test_the_first_error_ends_the_work():
    """Also what other workers are at: a command that failed does not run on for hours."""
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        each(slow_or_wrong, [60.0, 0.0], workers=2)
    assert time.monotonic() - started < 50
    with pytest.raises(ZeroDivisionError):
        each(divmod_by, [0, 1], workers=1)


def slow_or_wrong(seconds: float) -> float:
    if not seconds:
        return 1 / seconds
    time.sleep(seconds)
    return seconds


def divmod_by(x: int) -> tuple[int, int]:
    return divmod(1, x)


def test_a_worker_has_one_thread():
    """Rule 2: threads are fixed, whatever the number of workers."""
    assert each(threads, [0, 1], workers=2) == [1, 1]


def threads(_: int) -> int:
    import torch

    return torch.get_num_threads()
