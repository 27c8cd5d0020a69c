"""Measured points on disk, part by part: what a killed run goes on from, and what several machines share.

A part is one JSON file, written atomically: the rows of some points, the identity of what was measured, the machine.
Python writes a float so that it reads back to the same bits; inf and NaN survive, and count as measured (NUMERICS 27).
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from landscape.errors import LandscapeError
from landscape.probe import Point, Row

SCHEMA = 1
Found = dict[Point, list[Row]]


class Store:
    """The parts of one table in a folder.

    Parameters
    ----------
    folder
        Made when the first part is written.
    identity
        What every part must have been measured with, as :meth:`landscape.probe.Probe.identity` gives it, and what the
        caller adds to it.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.identity = json.loads(json.dumps(identity))

    def read(self) -> Found:
        """All points that are there.

        Raises
        ------
        LandscapeError
            If a part is damaged, or was measured with anything else; says what differs.
        """
        found: Found = {}
        for path in sorted(self.folder.glob("*.json")):
            part = self._part(path)
            try:
                rows = [(tuple(map(float, point)), [dict(row) for row in rows]) for point, rows in part["points"]]
            except (KeyError, TypeError, ValueError) as error:
                raise LandscapeError(f"{path}: expected measured points, found a damaged part; delete it") from error
            found.update(rows)
        return found

    def write(self, found: Found) -> None:
        """Add one part; its name follows from its points, so that the same part is written over, never twice."""
        from figures.tables import write_text

        part = {
            "schema": SCHEMA,
            "identity": self.identity,
            "machine": machine(),
            "points": [[list(point), rows] for point, rows in found.items()],
        }
        part["sha256"] = _checksum(part)
        name = hashlib.sha256(repr(list(found)).encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / f"{name}.json", json.dumps(part) + "\n")

    def machines(self) -> list[str]:
        """The kinds of machine that the parts were measured on; bit-identity is promised within one (NUMERICS 2)."""
        return sorted({str(self._part(path)["machine"]) for path in self.folder.glob("*.json")})

    def _part(self, path: Path) -> dict[str, Any]:
        try:
            part = json.loads(path.read_text())
            schema, identity = part["schema"], part["identity"]
            if part.pop("sha256") != _checksum(part):
                raise KeyError("sha256")
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, RecursionError) as error:
            raise LandscapeError(f"{path}: expected measured points, found a damaged part; delete it") from error
        if schema != SCHEMA:
            raise LandscapeError(f"{path}: expected schema {SCHEMA}, found {schema!r}; delete it")
        if identity != self.identity:
            field = next(k for k in [*self.identity, *identity] if self.identity.get(k) != identity.get(k))
            raise LandscapeError(
                f"{path} was measured with another {field}, {_short(identity.get(field))} in place of "
                f"{_short(self.identity.get(field))}: parts of different measurements are not mixed; delete it, or "
                "measure into another folder"
            )
        return part


def clear(folder: Path, points: Collection[Point]) -> None:
    """Delete the parts whose points are all among these, once the table that holds them is written."""
    known = set(points)
    for path in folder.glob("*.json"):
        if {tuple(point) for point, _ in json.loads(path.read_text())["points"]} <= known:
            path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def machine() -> str:
    """The kind of machine, as far as results may depend on it; parts of several are joined, and name theirs."""
    return f"{platform.system()} {platform.machine()} {_processor()}".strip()


def _processor(about: Path = Path("/proc/cpuinfo")) -> str:
    # Linux says the model there; elsewhere, and where it names none, Python knows what there is to know.
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", about.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return " ".join(found[1].split()) if found else platform.processor()


def _checksum(part: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(part).encode()).hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
