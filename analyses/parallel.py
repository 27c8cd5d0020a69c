"""The same function over many items, in worker processes of one thread each.

One thread a worker whatever their number, so that no number depends on it (NUMERICS 2).
"""

from __future__ import annotations

import contextlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int = 1,
    on_done: Callable[[Item], Any] | None = None,
) -> list[Result]:
    """Results of ``function`` in the order of the items; ``on_done`` hears of each item as it ends.

    ``function`` and the items are sent to fresh processes, so they are plain data and a function of a module. The first
    exception ends the work, what runs in other workers too (it is resumable), and is raised here.
    """
    items = list(items)
    if not items:
        return []
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(workers, len(items)), mp_context=context, initializer=_one_thread) as pool:
        jobs = {pool.submit(function, item): item for item in items}
        try:
            for job in as_completed(jobs):
                job.result()
                if on_done:
                    on_done(jobs[job])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise
    return [job.result() for job in jobs]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As in a worker, so that what workers measured is found; the number of threads is as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
