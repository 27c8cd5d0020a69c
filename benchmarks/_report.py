"""The results as files: one JSON file that sections are replaced in, and the CSV table and the README made of it."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks._rows import Row

COMMANDS = {
    "landscape": "python -m benchmarks.landscape --full-grids",
    "quant": "python -m benchmarks.quant --files DIR",
}
"""Tables, in the order of the README, and what writes them."""
PACKAGES = (
    "torch",
    "timm",
    "numpy",
    "scipy",
    "loss-landscapes",
    "landscaper",
    "PyHessian",
    "curvlinops-for-pytorch",
    "hessian-eigenthings",
    "torchao",
)
COLUMNS = ("what", "ours", "unit", "compared with", "theirs", "figure", "value", "target", "met", "note")


def facts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The machine, the versions, the day and the settings of a run."""
    import torch

    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "threads": torch.get_num_threads(),
        "clock": "processor" if torch.get_num_threads() == 1 else "wall",
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "settings": dict(settings),
    }


def frame(rows: Mapping[str, Sequence[Row]]) -> Any:
    """All rows as one DataFrame, their section in front."""
    import pandas as pd

    return pd.DataFrame([{"section": section, **row.record()} for section in rows for row in rows[section]])


def write(
    out: Path, name: str, rows: Mapping[str, Sequence[Row]], run: Mapping[str, Any], order: Sequence[str]
) -> None:
    """Replace these sections in ``out/results/<name>.json``; make its CSV, and the README from every table there is."""
    import pandas as pd

    from figures.atomic import write_text

    path = out / "results" / f"{name}.json"
    known = json.loads(path.read_text())["sections"] if path.exists() else {}
    for section, found in rows.items():
        known[section] = {"run": dict(run), "rows": [row.record() for row in found]}
    sections = {name: known[name] for name in order if name in known}
    write_text(path, json.dumps({"sections": sections}, indent=1) + "\n")
    table = pd.DataFrame([{"section": name, **row} for name, part in sections.items() for row in part["rows"]])
    write_text(path.with_suffix(".csv"), table.to_csv(index=False, lineterminator="\n"))
    files = {table: out / "results" / f"{table}.json" for table in COMMANDS}
    tables = {table: json.loads(file.read_text())["sections"] for table, file in files.items() if file.exists()}
    write_text(out / "README.md", readme(tables))


def readme(tables: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The tables as Markdown, what they were measured on under each part."""
    written = " and ".join(f"`{COMMANDS[name]}`" for name in tables)
    lines = [
        "# Benchmarks",
        "",
        f"Written by {written}; do not edit. `pip install -e '.[benchmark]'` brings "
        "the other tools, but for landscaper: its dependencies ask for another NumPy, so it lives in an environment "
        "of its own, named by `--landscaper`.",
        "",
        "Medians of alternated repeats. Seconds are those of the processor where one thread works (on an idle machine "
        "they are those of the wall), so that other work here does not count. Every answer is checked before its "
        "time counts: surfaces against the reference and a loop, products and eigenpairs against forward-over-reverse "
        "differentiation, which shares no code with ours. Other tools are called as documented, unpatched.",
        "",
    ]
    for table, name, part in ((t, name, part) for t, sections in tables.items() for name, part in sections.items()):
        run = part["run"]
        lines += [f"## {table}: {name}", "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
        lines += [_line(row) for row in part["rows"]]
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        lines += [
            "",
            f"{run['date']}; {run['processor']}, {run['cores']} cores, {run['memory_gib']} GiB, {run['system']}; "
            f"{run['threads']} thread(s), {run['clock']} clock, load {run['load']} at the start; {versions}.",
            "",
        ]
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    theirs = f"{'> ' if row['theirs_at_least'] else ''}{_number(row['theirs'])}"
    cells = [row["what"], _number(row["ours"]), row["unit"], row["compared_with"], theirs]
    cells += [row["figure"], _number(row["value"]), row["target"], row["met"], row["note"]]
    return f"| {' | '.join(str(cell).replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if abs(value) >= 1000 or (value and math.fmod(value, 1) == 0) else f"{value:.3g}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                 if line.startswith("model name")]  # fmt: skip
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
