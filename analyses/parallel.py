"""The same function over many items, in worker processes of one thread each.

One thread a worker whatever their number, so that no number depends on it (NUMERICS 2).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.context import BaseContext

LARGE = ["timm", "pandas", "scipy.stats"]
"""What takes a worker seconds to import."""

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
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(workers, len(items)), mp_context=context(), initializer=_one_thread) as pool:
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


def context() -> BaseContext:
    """What starts fresh processes: on Linux forks of a server that has imported the large libraries and done no more.

    So they are imported once, not once a worker. Elsewhere a process that has imported them may not be safe to fork.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(LARGE)
    return server


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with so many threads, as a worker has them; the number is as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
