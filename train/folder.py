"""A run folder while it is trained in: who holds it, what was there before, what its record says."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from train import build as parts
from train.errors import TrainError
from train.run import RECORD, RESUME, Run
from train.spec import RunSpec
from train.tasks import Task


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the run folder against other processes; the lock goes with the process, however it ends.

    Raises
    ------
    TrainError
        If another one holds it.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainError(f"{folder}: another process is training this run") from None
        yield
    finally:
        os.close(handle)


def earlier(folder: Path, spec: RunSpec, task: Task, fingerprints: dict[str, str]) -> Run | None:
    """The run that is in the folder already.

    Raises
    ------
    TrainError
        If it is of another specification, data or backbone.
    """
    if not (folder / RECORD).exists():
        return None
    earlier = Run.open(folder, task=task)
    if earlier.spec.without_folders() != spec.without_folders():
        raise TrainError(f"{folder}: expected a run of this specification, found another one of the same name")
    earlier.check(fingerprints)
    return earlier


def same_circumstances(earlier: Run, now: dict[str, Any]) -> None:
    """Refuse to go on elsewhere than where a run was begun: its end would not be that of an undisturbed run.

    Raises
    ------
    TrainError
        If versions, type of device or number of threads differ (NUMERICS 27).
    """
    then = earlier.record
    for what, old, new in (
        ("versions", then.get("versions"), now["versions"]),
        ("device", then["device"].get("type"), now["device"]["type"]),
        ("threads", then["device"].get("threads"), now["device"]["threads"]),
    ):
        if old != new:
            raise TrainError(
                f"{earlier.path} was begun with {what} {old}, found {new}: go on as it was begun, or remove its "
                f"{RESUME} to start again"
            )


def circumstances(spec: RunSpec, device: torch.device, command: str | None) -> dict[str, Any]:
    """What the numbers may depend on beside the specification, for the record."""
    from figures.tables import versions

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "transform": parts.transform(spec).describe(),
        "versions": versions(),
        "device": {"name": str(device), "type": device.type, "model": name, "threads": torch.get_num_threads()},
        "command": command if command is not None else shlex.join(sys.argv),
    }


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write ``run.json``, whole or not at all."""
    from figures.tables import write_text

    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")


def sweep(folder: Path, keep: str | None = None) -> None:
    """Remove what a killed process left: half-written files, and the position of a finished run."""
    for path in [*folder.glob(".*.tmp"), folder / RESUME]:
        if path.name != keep:
            path.unlink(missing_ok=True)
