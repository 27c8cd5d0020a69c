"""What an adapter file holds and what each part of it costs in bytes: .lowbit, the paper's ``.bin``, peft folders.

The parts add up to the file: header, codes, statistics, values (plain tensors outside the head), head (all of it),
checksum. A peft folder's header is that of its safetensors and its configuration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quant.errors import QuantError
from quant.header import is_head, sections
from quant.lowbit import CHECKSUM, Lowbit, open_header, read_lowbit, to_bytes
from quant.peft import CONFIG, WEIGHTS, is_peft, read_peft
from quant.petl import config_beside, read_petl

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """An opened file: bytes of each part, and of the file that would hold all but the head."""

    path: Path
    format: str
    lowbit: Lowbit
    parts: dict[str, int]
    without_head_bytes: int

    @property
    def file_bytes(self) -> int:
        """All bytes on disk."""
        return sum(self.parts.values())

    def to_frame(self) -> pd.DataFrame:
        """A row a part, then the sum and the file without its head: part, tensors, weights, size_bytes."""
        import pandas as pd

        low = [t for t in self.lowbit.tensors if not is_head(t.name, self.lowbit.header)]
        held = {
            "codes": [t for t in low if t.codes is not None],
            "values": [t for t in low if t.values is not None],
            "head": [t for t in self.lowbit.tensors if is_head(t.name, self.lowbit.header)],
            "file": self.lowbit.tensors,
            "file without head": low,
        }
        sizes = {**self.parts, "file": self.file_bytes, "file without head": self.without_head_bytes}
        rows = [
            {
                "part": part,
                "tensors": len(held.get(part, [])),
                "weights": sum(math.prod(t.shape) for t in held.get(part, [])),
                "size_bytes": size,
            }
            for part, size in sizes.items()
        ]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data: path, format, header, a row a tensor, parts and sums in bytes."""
        return {
            "path": str(self.path),
            "format": self.format,
            "header": self.lowbit.header,
            "tensors": [
                {key: None if value != value else value for key, value in row.items()}  # pandas has NaN for no text
                for row in self.lowbit.to_frame().to_dict("records")
            ],
            "parts_bytes": self.parts,
            "file_bytes": self.file_bytes,
            "without_head_bytes": self.without_head_bytes,
        }

    def summary(self) -> str:
        """One line: what it is of, and how its tensors are stored."""
        header, kinds = self.lowbit.header, []
        for t in self.lowbit.tensors:
            kind = f"{t.bits}-bit {t.quantizer}" if t.quantizer else str(t.dense().dtype).removeprefix("torch.")
            kinds += [kind] if kind not in kinds else []
        facts = [
            f"{name} {header[name]}" for name in ("method", "dim", "scale", "backbone", "task") if header.get(name)
        ]
        facts += [f"peft {header['peft'].get('peft_type')}"] if isinstance(header.get("peft"), dict) else []
        classes = header.get("classes")
        facts += [f"{len(classes)} classes"] if isinstance(classes, list) and classes else []
        return f"{self.path}: {self.format}; {', '.join([*facts, *kinds])}"


def contents(path: Path | str, config: Path | str | None = None, **sizes: int | None) -> Contents:
    """Open a .lowbit file, a ``.bin`` of the paper's (its YAML beside it or given), or a peft folder.

    ``sizes`` are those of :func:`quant.petl.read_petl`.

    Raises
    ------
    QuantError
        If it is none of these, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        if not is_peft(path):
            raise QuantError(f"{path}: expected a .lowbit file, a .bin with its YAML or a peft folder, found a folder")
        return _of_peft(path)
    if path.suffix == ".bin":
        return _of_petl(path, read_petl(path, config or config_beside(path), **sizes))
    return _of_lowbit(path, read_lowbit(path))


def _of_lowbit(path: Path, lowbit: Lowbit) -> Contents:
    data = path.read_bytes()
    version = int.from_bytes(data[4:6], "little")
    coded: Sequence[Any] = ()
    if version == 0:
        parts, total = _parts(lowbit), len(data)
        parts["checksum"] = 32
    else:
        header, entries, coded, _ = open_header(data)
        sizes, total = sections(header, entries, coded), len(data)
        parts = {kind: sizes["adapter", kind] for kind in ("codes", "statistics", "values")}
        parts |= {"head": sum(size for (part, _), size in sizes.items() if part == "head"), "checksum": CHECKSUM}
    parts = {"header": total - sum(parts.values()), **parts}
    without = total
    if parts["head"] or "classes" in lowbit.header:
        without = len(to_bytes(lowbit.without_head(), streams=any(coded)))
    return Contents(
        path=path, format=f"lowbit version {version}", lowbit=lowbit, parts=parts, without_head_bytes=without
    )


def _of_petl(path: Path, lowbit: Lowbit) -> Contents:
    parts = {"header": 0, **_parts(lowbit), "checksum": 0}
    without = sum(parts.values()) - parts["head"]
    return Contents(path=path, format="petl", lowbit=lowbit, parts=parts, without_head_bytes=without)


def _of_peft(path: Path) -> Contents:
    lowbit = read_peft(path)
    parts = {**_parts(lowbit), "checksum": 0}
    total = sum((path / name).stat().st_size for name in (CONFIG, WEIGHTS))
    parts = {"header": total - sum(parts.values()), **parts}
    return Contents(path=path, format="peft", lowbit=lowbit, parts=parts, without_head_bytes=total - parts["head"])


def _parts(lowbit: Lowbit) -> dict[str, int]:
    """Bytes of what tensors are made of, all codes dense."""
    parts = dict.fromkeys(("codes", "statistics", "values", "head"), 0)
    for e in [t.entry() for t in lowbit.tensors]:
        if is_head(e.name, lowbit.header):
            parts["head"] += e.nbytes
        else:
            parts["codes"] += e.code_bytes
            parts["statistics"] += e.statistic_bytes
            parts["values"] += e.value_bytes
    return parts
