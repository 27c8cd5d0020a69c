"""Draw every figure whose tables lie below a folder: what ``python -m figures`` does."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures import names
from figures.style import METHOD_NAMES, SIZES, save
from figures.tables import PROVENANCE, TableError, read_provenance, read_table

if TYPE_CHECKING:
    import pandas as pd

HISTORY = "history.csv"


def redraw(folder: Path | str, out: Path | str, analysis: str | None = None) -> list[Path]:
    """Draw what the tables below ``folder`` allow, as PDF and PNG below ``out``, and return the files.

    Tables of ``<place>/tables/<analysis>`` become ``out/<place>/<figure>``, with the analysis in front of the name if
    it is not the one that the figure is made for, and with the task behind it if a table holds several. The training
    histories of all runs below ``folder`` become one figure a task. With an ``analysis`` named, only the figures that
    read its tables are drawn, if there are any; one that cannot be is a warning on stderr, and no end of a command
    whose measurement is done.

    Raises
    ------
    TableError
        If no analysis was named and nothing can be drawn, or, after all else is drawn, some of it cannot.
    """
    folder, out = Path(folder), Path(out)
    paths: list[Path] = []
    errors: list[str] = []
    jobs = [*_analyses(folder, errors, analysis), *([] if analysis else _histories(folder, errors))]
    for place, source, tables in jobs:
        for figure in names():
            module = import_module(f"figures.{figure}")
            needed = module.TABLES.get(source, ())
            if not needed or not set(needed) <= set(tables):
                continue
            stem = figure if next(iter(module.TABLES)) == source else f"{source}_{figure}"
            for suffix, part in _by_task({name: tables[name] for name in needed}):
                try:
                    paths += save(module.draw(part), out / place / f"{stem}{suffix}")
                except TableError as error:
                    errors.append(f"{place / source}{suffix} not drawn: {error}")
    told = dict.fromkeys(errors)
    if told and analysis is None:
        drawn = f" ({len(paths)} files were drawn)" if paths else ""
        raise TableError("; ".join(told) + drawn)
    for line in told:
        print(f"warning: {line}", file=sys.stderr)
    if not paths and analysis is None:
        raise TableError(
            f"expected tables/<analysis>/{PROVENANCE} or runs below {folder}, found none that a figure draws"
        )
    return paths


Job = tuple[Path, str, dict[str, "pd.DataFrame"]]


def _analyses(folder: Path, errors: list[str], only: str | None) -> list[Job]:
    """Place, analysis and tables of every analysis folder, sorted; shards of unfinished ones are passed over."""
    wanted = {analysis for figure in names() for analysis in import_module(f"figures.{figure}").TABLES}
    if only is not None:
        wanted &= {only}
    found: list[Job] = []
    for path in sorted(folder.rglob(PROVENANCE)):
        where = path.parent
        if "parts" in where.relative_to(folder).parts:
            continue
        try:
            provenance = read_provenance(where)
            analysis = str(provenance.get("analysis", where.name))
            if analysis in wanted:
                frames = {name: read_table(where, name).frame for name in provenance["tables"]}
                found.append((_place(where, folder), analysis, frames))
        except TableError as error:
            errors.append(f"{_place(where, folder) / where.name} not drawn: {error}")
    return found


def _place(where: Path, folder: Path) -> Path:
    """Where, relative to ``folder``, the thing lies that an analysis folder belongs to."""
    parts = where.relative_to(folder).parts
    return Path(*parts[:-2]) if len(parts) > 1 and parts[-2] == "tables" else Path(*parts[:-1])


def _histories(folder: Path, errors: list[str]) -> list[Job]:
    """The histories of all run folders in one table, labelled from their ``run.json``."""
    import pandas as pd

    frames = []
    for path in sorted(folder.rglob(HISTORY)):
        try:
            spec = json.loads((path.parent / "run.json").read_bytes())["spec"]
            frames.append(pd.read_csv(path).assign(**_labels(spec), run=path.parent.name))
        except FileNotFoundError:
            continue  # some other history.csv, not a run's
        except (ValueError, KeyError, TypeError) as error:
            errors.append(f"{path.parent}: its run.json and {HISTORY} cannot be read ({type(error).__name__})")
    return [(Path(), "history", {"history": pd.concat(frames, ignore_index=True)})] if frames else []


def _labels(spec: dict[str, Any]) -> dict[str, Any]:
    """The label columns of a run, from its specification."""
    method, dim, bits = str(spec["method"]), int(spec.get("dim") or 0), int(spec.get("bits") or 32)
    label = METHOD_NAMES.get(method, method)
    if method not in ("full", "linear"):
        label += f" {SIZES.get(method, '')}{dim}, {bits} bit{'s' if bits > 1 else ''}"
    head = int(spec.get("head_bits") or 32)
    label += f", {head}-bit head" if head < 32 else ""
    return {
        "label": label,
        "method": method,
        "dim": dim,
        "bits": bits,
        "task": _without_folder(str(spec.get("task", ""))),
    }


def _without_folder(task: str) -> str:
    """``folder:/data/pets`` as ``folder:pets``: the same data elsewhere are the same task."""
    kind, colon, path = task.partition(":")
    return f"{kind}:{Path(path).name}" if colon else task


def _by_task(tables: dict[str, pd.DataFrame]) -> list[tuple[str, dict[str, pd.DataFrame]]]:
    """The tables of each task with the suffix of its figure's name: models are compared within a task only."""
    tasks = list(dict.fromkeys(task for frame in tables.values() if "task" in frame for task in frame["task"]))
    if len(tasks) < 2:
        return [("", tables)]
    parts = []
    for task in tasks:
        suffix = "_" + "".join(c if c.isalnum() or c == "-" else "-" for c in str(task))
        own = {n: f[f["task"] == task].reset_index(drop=True) if "task" in f else f for n, f in tables.items()}
        parts.append((suffix, own))
    return parts
