"""Where results lie: an analysis that finds its finished tables under their key does nothing."""

from __future__ import annotations

import datetime
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd


Tables = dict[str, "pd.DataFrame"]


def cached(folder: Path, settings: dict[str, Any], compute: Callable[[], tuple[Tables, dict[str, Any]]]) -> Tables:
    """The tables of ``folder`` if they were made with these settings, else those of ``compute()``, written there.

    ``compute`` returns the tables and further facts for the provenance, which also says settings, versions, machine,
    command and seconds. The facts' ``spent`` are called once the tables are written, and left out: they delete what was
    stored below ``folder/parts`` on the way, and nothing that another command may have left there.
    """
    from figures.tables import finished, key_of, read_tables, versions, write_tables

    identity = {"settings": settings, "versions": versions()}
    key = key_of(identity)
    if not finished(folder, key):
        started = time.perf_counter()
        tables, facts = compute()
        spent = facts.pop("spent", ())
        provenance = {
            **facts,
            "key": key,
            **identity,
            "machine": machine(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "seconds": round(time.perf_counter() - started, 3),
        }
        write_tables(folder, tables, provenance)
        for delete in spent:
            delete()
        _prune(folder / "parts")
    return {name: table.frame for name, table in read_tables(folder).items()}


def _prune(folder: Path) -> None:
    """Delete the folder if there is no file below it."""
    if folder.is_dir() and not any(path.is_file() for path in folder.rglob("*")):
        shutil.rmtree(folder)


def machine() -> dict[str, object]:
    """Processor, cores and threads of this run."""
    import os
    import platform

    import torch

    return {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def announce(quiet: bool, *lines: str) -> None:
    """Say what is assumed, on stderr, before the work begins."""
    if not quiet:
        print(*lines, sep="\n", file=sys.stderr)


def draw(out: Path, quiet: bool, analysis: str) -> None:
    """Draw the figures of an analysis whose tables lie below ``out`` into ``out/figures``; there may be none."""
    from figures.redraw import redraw

    for path in redraw(out, out / "figures", analysis):
        announce(quiet, f"drew {path}")
