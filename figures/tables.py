"""Tables on disk: how an analysis writes its result and how everything else reads it.

One analysis lies in one folder, ``tables/<analysis>/``: a CSV for each table (long form, for a person to review) and
one ``provenance.json`` that says what they come from and holds the checksum and the column kinds of each. Every write
goes to a temporary name in the same folder and is then renamed, the provenance last: a folder that matches its
provenance is complete.

Exact round trip: floats are written with the digits that give back the same bits, NaN and the infinities survive,
integers stay integers and a column of text that looks like numbers stays text. Widths do not survive (float32 comes
back as float64, its value unchanged), nor does the index; a missing text comes back as the empty text.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import json
import platform
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from figures.atomic import replace_all, write_bytes, write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = [
    "Table", "TableError", "finished", "key_of", "nearest", "read_provenance", "read_table", "read_tables", "versions",
    "write_bytes", "write_tables", "write_text",
]  # fmt: skip

SCHEMA = 1
_NAME = re.compile(r"[A-Za-z0-9_-]+")
PROVENANCE = "provenance.json"
DTYPES = {"float": "float64", "int": "int64", "uint": "uint64", "bool": "bool", "text": "str"}
VERSIONS = ("precision-redundancy", "torch", "timm", "numpy", "scipy", "pandas")
Kinds = dict[str, str]


class TableError(ValueError):
    """A table, or the folder that should hold it, is not what it has to be."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """A tidy frame with where it comes from.

    Attributes
    ----------
    frame
        Long form; units stand in the column names (``_bits``, ``_nats``, ``_bytes``, ``_s``).
    provenance
        What ``provenance.json`` says: analysis, key, settings, versions and what the analysis added.
    name
        The table's name within its analysis.
    """

    frame: pd.DataFrame
    provenance: dict[str, Any]
    name: str

    def to_frame(self) -> pd.DataFrame:
        """The frame itself, as a copy."""
        return self.frame.copy()

    def _repr_html_(self) -> str:
        analysis = self.provenance.get("analysis", "")
        caption = f"<p><b>{_escape(analysis)} / {_escape(self.name)}</b>, {len(self.frame)} rows</p>"
        return caption + self.frame.to_html(index=False, max_rows=20)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the table on ``ax`` (a new one by default) the way its figure does.

        Raises
        ------
        TableError
            If no figure draws this table.
        """
        from figures import names

        for figure in names():
            module = import_module(f"figures.{figure}")
            if self.name in module.TABLES.get(self.provenance.get("analysis"), ())[:1]:
                return module.plot(self.frame, ax)
        raise TableError(f"no figure draws the table {self.name!r} of {self.provenance.get('analysis')!r}")


def write_tables(folder: Path | str, tables: dict[str, pd.DataFrame], provenance: dict[str, Any]) -> Path:
    """Write the tables of one analysis and then their provenance; what exists is replaced, never half.

    Tables that the folder's last provenance lists and this one does not are removed: they are of other settings.

    Parameters
    ----------
    folder
        ``.../tables/<analysis>``; made if missing.
    tables
        Frames by table name. A column holds floats, integers, booleans or text, not a mixture.
    provenance
        ``settings`` (dict) and whatever else a reader must know: seed, data fingerprint, device, baseline, cost.
        ``analysis`` defaults to the folder's name, ``key`` to ``key_of(settings)``, ``versions`` to the installed ones;
        ``schema`` and ``tables`` are filled in.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    TableError
        If a name or a column cannot be written so that it reads back the same.
    """
    folder = Path(folder)
    record = {"schema": SCHEMA, "analysis": folder.name, **provenance}
    record.setdefault("key", key_of(record.get("settings", {})))
    record.setdefault("versions", versions())
    contents: dict[str, bytes] = {}
    entries: dict[str, Any] = {}
    for name, frame in tables.items():
        if not _NAME.fullmatch(name):
            raise TableError(f"a table's name has letters, digits, _ and -; found {name!r}")
        plain, kinds = _normalised(frame, name)
        data = plain.to_csv(index=False, na_rep="nan", lineterminator="\n").encode()
        contents[f"{name}.csv"] = data
        entries[name] = {"sha256": hashlib.sha256(data).hexdigest(), "rows": len(frame), "columns": kinds}
    contents[PROVENANCE] = (json.dumps({**record, "tables": entries}, indent=1, default=_plain) + "\n").encode()
    before = _listed(folder)
    replace_all(folder, contents)
    for name in before - entries.keys():
        (folder / f"{name}.csv").unlink(missing_ok=True)
    return folder


def _listed(folder: Path) -> set[str]:
    # Names of the tables of the folder's provenance, if there is a sound one.
    try:
        return {name for name in read_provenance(folder)["tables"] if _NAME.fullmatch(name)}
    except (OSError, TableError):
        return set()


def read_table(folder: Path | str, name: str) -> Table:
    """Read one table of an analysis folder.

    A TableError says that the folder has no readable provenance or no such table, or that the CSV is not the one that
    was written.
    """
    folder = Path(folder)
    return _read(folder, name, read_provenance(folder))


def read_tables(folder: Path | str) -> dict[str, Table]:
    """Read every table of an analysis folder; errors as in ``read_table``."""
    folder = Path(folder)
    provenance = read_provenance(folder)
    return {name: _read(folder, name, provenance) for name in provenance["tables"]}


def read_provenance(folder: Path | str) -> dict[str, Any]:
    """Read and check ``provenance.json`` of an analysis folder.

    Raises
    ------
    TableError
        If it is missing, damaged, or of a schema that this version does not know.
    """
    path = Path(folder) / PROVENANCE
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise TableError(f"expected the tables of an analysis, found no {PROVENANCE} in {folder}") from error
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path} is no JSON ({type(error).__name__}); run the analysis again") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else type(record).__name__
        raise TableError(f"{path}: expected schema {SCHEMA}, found {found!r}")
    tables = record.get("tables")
    if not isinstance(tables, dict) or not all(_is_entry(entry) for entry in tables.values()):
        raise TableError(f"{path}: 'tables' should give sha256, rows and columns of each table; run the analysis again")
    return record


def finished(folder: Path | str, key: str) -> bool:
    """Whether this folder holds the whole result of the settings with this key, unchanged since it was written."""
    folder = Path(folder)
    try:
        provenance = read_provenance(folder)
        tables = provenance["tables"]
        return provenance.get("key") == key and all(
            hashlib.sha256(_bytes_of(folder, name)).hexdigest() == entry["sha256"] for name, entry in tables.items()
        )
    except TableError:
        return False


def key_of(settings: dict[str, Any]) -> str:
    """The identity of settings: 16 hex digits of the SHA-256 of their canonical JSON, in any order of the keys."""
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on, without importing them."""
    found = {"python": platform.python_version()}
    for library in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[library] = metadata.version(library)
    return found


def _normalised(frame: pd.DataFrame, name: str) -> tuple[pd.DataFrame, Kinds]:
    """The frame with plain column types, and each column's kind.

    Raises
    ------
    TableError
        If a column's name or its values would not come back as they are.
    """
    import pandas as pd

    columns = list(frame.columns)
    if not columns or not all(isinstance(c, str) and _writable(c) for c in columns) or len(set(columns)) < len(columns):
        raise TableError(f"table {name!r}: expected differing column names that are text, found {columns}")
    series, kinds = {}, {}
    for column in columns:
        values = frame[column].infer_objects()
        kind = _kind(values)
        if kind is None:
            found = sorted({type(v).__name__ for v in values})
            raise TableError(f"table {name!r}, column {column!r}: expected numbers, booleans or text, found {found}")
        if kind == "text":
            values = values.astype(object).where(values.notna(), "")
        values = values.astype(cast(Any, DTYPES[kind]))
        if kind == "text" and not values.map(_writable).all():
            raise TableError(f"table {name!r}, column {column!r}: a text holds a character that CSV does not carry")
        kinds[column] = kind
        series[column] = values.reset_index(drop=True)
    return pd.DataFrame(series), kinds


def _kind(values: pd.Series) -> str | None:
    """``float``, ``int``, ``uint``, ``bool``, ``text``, or None for what a table does not hold."""
    from pandas.api import types

    whole = not values.isna().any()
    if types.is_bool_dtype(values) and whole:
        return "bool"
    if types.is_unsigned_integer_dtype(values) and whole:
        return "uint"
    if types.is_integer_dtype(values) and whole:
        return "int"
    # a nullable integer with a hole becomes a float, as pandas itself has it
    if types.is_float_dtype(values) or types.is_integer_dtype(values):
        return "float"
    return "text" if all(isinstance(v, str) for v in values.dropna()) else None


def _writable(text: str) -> bool:
    """Whether CSV gives this text back: no NUL, no carriage return, no half of a surrogate pair."""
    return not re.search("[\0\r\ud800-\udfff]", text)


def _read(folder: Path, name: str, provenance: dict[str, Any]) -> Table:
    import pandas as pd

    entries = provenance["tables"]
    if name not in entries:
        raise TableError(
            f"{folder} has no table {name!r}{nearest(name, entries)}; it has {', '.join(entries) or 'none'}"
        )
    entry = entries[name]
    data = _bytes_of(folder, name)
    path = folder / f"{name}.csv"
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise TableError(f"{path} is not what was written (its checksum differs); run the analysis again")
    try:
        text = pd.read_csv(io.BytesIO(data), dtype=str, na_filter=False, skip_blank_lines=False)
        if list(text.columns) != list(entry["columns"]) or len(text) != entry["rows"]:
            raise ValueError(f"{len(text)} rows of {[*text.columns]}")
        frame = pd.DataFrame({column: _parsed(text[column], kind) for column, kind in entry["columns"].items()})
    except (ValueError, OverflowError, KeyError) as error:
        raise TableError(f"{path} does not fit its provenance: {' '.join(str(error).split())}") from error
    return Table(frame=frame, provenance=provenance, name=name)


def _parsed(text: pd.Series, kind: str) -> pd.Series:
    """A column from its text; Python's own ``float`` gives back every bit whatever pandas' parser does."""
    import pandas as pd

    if kind == "text":
        return text
    parsers: dict[str, Callable[[str], Any]] = {"float": float, "bool": {"True": True, "False": False}.__getitem__}
    parse = parsers.get(kind, int)
    return pd.Series([parse(cell) for cell in text], dtype=cast(Any, DTYPES[kind]))


def _bytes_of(folder: Path, name: str) -> bytes:
    path = folder / f"{name}.csv"
    try:
        return path.read_bytes()
    except OSError as error:
        raise TableError(f"{path} is listed in {PROVENANCE} but cannot be read: {error.strerror}") from error


def _is_entry(entry: Any) -> bool:
    """Whether this is what ``provenance.json`` says about a table."""
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("rows"), int)
        or not isinstance(entry.get("sha256"), str)
    ):
        return False
    kinds = entry.get("columns")
    return isinstance(kinds, dict) and all(isinstance(kind, str) and kind in DTYPES for kind in kinds.values())


def nearest(name: str, valid: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the valid name next to a wrong one, or nothing."""
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _plain(value: Any) -> Any:
    """What JSON takes, of paths, numpy's scalars and arrays.

    Raises
    ------
    TableError
        For anything else.
    """
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TableError(f"settings and provenance hold plain data; found a {type(value).__name__}")


def _escape(text: str) -> str:
    import html

    return html.escape(str(text))
