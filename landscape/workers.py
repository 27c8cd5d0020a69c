"""Points measured here, in processes of this machine, or on a ray cluster: the same rows from each.

What goes to a worker is the pickled probe, once. A worker has as many threads as torch has here, so that its values are
those of a serial run on the same type of machine (NUMERICS 2). A shard that is lost with its worker is done again. A
worker gives back what it has of a shard after SHARD_SECONDS, to be stored; the rest is a shard of its own.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from landscape import gpus
from landscape.errors import LandscapeError
from landscape.probe import Point, Probe
from landscape.shards import Found, Store

Compute = Callable[[Sequence[Point]], Iterator[Found]]
SHARD_SECONDS = 2.0
RETRIES = 3
VISIBLE = "CUDA_VISIBLE_DEVICES"
NO_START = (
    "no worker could start: each imports the script that asks for workers, so the script should do its work below "
    '`if __name__ == "__main__":`'
)


def measured(
    compute: Compute,
    points: Sequence[Point],
    store: Store | None = None,
    on_point: Callable[[int, int], None] | None = None,
) -> Found:
    """The rows of every point: those in the store, and the others measured and stored as they come."""
    kept = store.read() if store else {}
    found = {point: kept[point] for point in points if point in kept}
    unique = len(set(points))

    def tell(before: int) -> None:
        for done in range(before + 1, len(found) + 1):
            if on_point is not None:
                on_point(done, unique)

    tell(0)
    for shard in compute([point for point in dict.fromkeys(points) if point not in found]):
        before = len(found)
        if store:
            store.write(shard)
        found.update(shard)
        tell(before)
    return found


def check(workers: str) -> None:
    """Refuse what names no workers.

    Raises
    ------
    LandscapeError
        If it is no number from 1, ``ray`` or ``ray://HOST:PORT``.
    """
    if not re.fullmatch(r"0*[1-9][0-9]*|ray|ray://[^\s/]+", workers):
        raise LandscapeError(f"expected workers to be a number from 1, 'ray' or 'ray://HOST:PORT', found {workers!r}")


@contextmanager
def open_workers(probe: Probe, workers: str = "1") -> Iterator[Compute]:
    """What measures points: ``"1"`` here, ``"N"`` in N processes, ``"ray"`` or ``"ray://HOST:PORT"`` on a cluster.

    Yields
    ------
    callable
        Takes points, gives their rows shard by shard, in any order.

    What names no workers, ray where it is not installed or cannot be reached, and a model that cannot be sent are a
    ``LandscapeError``.
    """
    check(workers)
    if workers.startswith("ray"):
        with _ray(probe, workers) as compute:
            yield compute
    elif int(workers) == 1:
        with probe:
            yield lambda points: _serial(probe, points)
    else:
        with _processes(probe, int(workers)) as compute:
            yield compute


def _serial(probe: Probe, points: Sequence[Point]) -> Iterator[Found]:
    shard: Found = {}
    started = time.perf_counter()
    for point in points:
        shard[point] = probe.rows(point)
        if time.perf_counter() - started > SHARD_SECONDS:
            yield shard
            shard, started = {}, time.perf_counter()
    if shard:
        yield shard


@contextmanager
def _processes(probe: Probe, workers: int) -> Iterator[Compute]:
    if _imported_by_a_worker():
        raise SystemExit(1)  # without a traceback; the process that the person started says why
    payload = _pickled(probe)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "probe"
        file.write_bytes(payload)
        del payload
        # Forks of a server that has imported the libraries and done no more; elsewhere that is not safe.
        context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        seen = gpus.names(torch.cuda.device_count(), os.environ.get(VISIBLE)) if _on_cuda(probe) else []
        turns = context.Queue()
        for number in range(workers * (RETRIES + 1) if seen else 0):
            turns.put(seen[number % len(seen)])

        def pool() -> ProcessPoolExecutor:
            start = (file, torch.get_num_threads(), turns if seen else None)
            return ProcessPoolExecutor(workers, context, initializer=_open_probe, initargs=start)

        executor = pool()

        def compute(points: Sequence[Point]) -> Iterator[Found]:
            nonlocal executor
            losses = 0
            left = dict.fromkeys(points)
            while left:
                try:
                    jobs: dict[Future[Found], tuple[Point, ...]] = {
                        executor.submit(_measure, shard): shard for shard in _shards(tuple(left), workers)
                    }
                    while jobs:
                        for job in wait(jobs, return_when=FIRST_COMPLETED).done:
                            found = job.result()
                            rest = jobs.pop(job)[len(found) :]
                            for point in found:
                                del left[point]
                            yield found
                            if rest:
                                jobs[executor.submit(_measure, rest)] = rest
                except BrokenProcessPool as error:
                    if not _started(file).exists():
                        raise LandscapeError(NO_START) from error
                    losses += 1
                    if losses > RETRIES:
                        raise LandscapeError(
                            f"workers were killed {losses} times (out of memory?): fewer workers or a smaller batch"
                        ) from error
                    executor.shutdown(wait=False, cancel_futures=True)
                    executor = pool()

        try:
            yield compute
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


_probe: Probe | None = None


def _open_probe(file: Path, threads: int, turns: Any) -> None:
    # In the worker, before its first shard; each takes the next of the GPUs.
    global _probe
    threading.Thread(target=_end_with_parent, args=(file.parent,), daemon=True).start()
    _started(file).touch()
    torch.set_num_threads(threads)
    if turns is not None:
        os.environ[VISIBLE] = turns.get()
    _probe = gpus.load(file.read_bytes())
    _probe.__enter__()


def _end_with_parent(folder: Path) -> None:
    # A parent that was killed stops no worker and removes no folder. Each worker holds both ends of the queue that it
    # waits on, so it would wait for ever; the write end of the pipe that this waits on is the parent's alone.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _started(file: Path) -> Path:
    # There once a worker has come as far as its own code: before that it imports the script that asked for it.
    return file.with_name("started")


def _imported_by_a_worker() -> bool:
    # Whether the script runs again because a worker imports it; a process may start no other until it has done so.
    return bool(getattr(multiprocessing.current_process(), "_inheriting", False))


def _measure(points: tuple[Point, ...]) -> Found:
    assert _probe is not None
    return next(_serial(_probe, points))


@contextmanager
def _ray(probe: Probe, address: str) -> Iterator[Compute]:
    try:
        import ray
    except ImportError as error:
        raise LandscapeError(
            "workers on a cluster need ray; in the repository: python -m pip install -e '.[cluster]'"
        ) from error
    ours = not ray.is_initialized()
    if ours:
        try:
            _connect(address)
        except (ValueError, ConnectionError, RuntimeError, ImportError) as error:
            raise LandscapeError(f"no connection to workers {address!r}: {_reason(error)}") from error
    try:
        payload = _pickled(probe)
        key = hashlib.sha256(payload).hexdigest()
        threads = torch.get_num_threads()
        cuda = _on_cuda(probe)
        task = ray.remote(_measure_sent).options(num_cpus=threads, num_gpus=1 if cuda else 0, max_retries=RETRIES)
        sent = ray.put(payload)
        del payload

        def compute(points: Sequence[Point]) -> Iterator[Found]:
            slots = max(1, int(ray.cluster_resources().get("GPU" if cuda else "CPU", 1)) // (1 if cuda else threads))
            jobs = {task.remote(sent, key, threads, shard): shard for shard in _shards(points, slots)}
            while jobs:
                for job in ray.wait(list(jobs))[0]:
                    found = ray.get(job)
                    rest = jobs.pop(job)[len(found) :]
                    yield found
                    if rest:
                        jobs[task.remote(sent, key, threads, rest)] = rest

        yield compute
    finally:
        if ours:
            ray.shutdown()


def _connect(address: str) -> None:
    # The head starts a process for each client by a fork that now and then dies at once: it is asked again.
    import ray

    for tries in range(RETRIES + 1):
        try:
            ray.init(**_settings(address))
        except ConnectionAbortedError:
            if tries == RETRIES:
                raise
        else:
            return


def _reason(error: Exception) -> str:
    # One line: the first, and where that announces the head's traceback, its last.
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {others[-1].strip()}" if others and first.endswith(":") else first


def _settings(address: str) -> dict[str, Any]:
    # Of ray.init: a client takes no others.
    return {"log_to_driver": False, "include_dashboard": False} if address == "ray" else {"address": address}


_sent: dict[str, Probe] = {}


def _measure_sent(payload: bytes, key: str, threads: int, points: tuple[Point, ...]) -> Found:
    # In a worker of the cluster, which keeps the last probe that it was sent.
    torch.set_num_threads(threads)
    if key not in _sent:
        for probe in _sent.values():
            probe.__exit__(None, None, None)
        _sent.clear()
        _sent[key] = gpus.load(payload).__enter__()
    return next(_serial(_sent[key], points))


def _on_cuda(probe: Probe) -> bool:
    return next(iter(probe.space.parameters.values())).device.type == "cuda"


def _pickled(probe: Probe) -> bytes:
    # cloudpickle takes what is defined in a notebook too, and gives plain pickle to the worker.
    import cloudpickle

    try:
        return cloudpickle.dumps(probe)
    except Exception as error:
        raise LandscapeError(f"the model or its loss cannot be sent to a worker ({error}); use one worker") from error


def _shards(points: Sequence[Point], workers: int) -> list[tuple[Point, ...]]:
    # About eight shards a worker: the last worker does not keep the others waiting.
    size = max(1, min(32, len(points) // (8 * workers)))
    return [tuple(points[i : i + size]) for i in range(0, len(points), size)]
