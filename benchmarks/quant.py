"""Quantisers and packed files beside loops, numpy, the naive formula and torchao: ``python -m benchmarks.quant``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from benchmarks._rows import Row

Section = Literal["pack", "coding", "training step", "evaluation"]
SECTIONS: tuple[Section, ...] = ("pack", "coding", "training step", "evaluation")
DESCRIPTION = """Time quantisers and packed files: packing, the lossless stage, a training step, a pass in eval mode.

The table comes on stdout; --out also writes results/quant.csv and .json and README.md below a folder, in which the
sections measured now replace the earlier ones."""


def main(
    sections: tuple[Section, ...] = SECTIONS,
    files: Path | None = None,
    quick: bool = False,
    threads: int | None = None,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Measure.

    Args:
        sections: Which parts of the table.
        files: Folder of the paper's .bin files, each beside its YAML, for the lossless stage.
        quick: Fewer codes, images and repeats: whether everything runs, not how fast.
        threads: Of torch; one if left out.
        out: Folder to write to, such as ./benchmarks.
        json: The result as JSON.
    """
    from analyses.parallel import threads as with_threads
    from benchmarks import _packing, _training
    from benchmarks._report import facts, frame, write
    from benchmarks._rows import say
    from figures.command import emit

    repeats, batch = (1, 4) if quick else (9, _training.BATCH)
    measures: dict[Section, Callable[[], list[Row]]] = {
        "pack": lambda: _packing.pack_rows(repeats, 1 << 16 if quick else _packing.WEIGHTS),
        "coding": lambda: _packing.coding_rows(files, 1 if quick else 3, _packing.WIDE[:1] if quick else _packing.WIDE),
        "training step": lambda: _training.step_rows(repeats, batch),
        "evaluation": lambda: _training.evaluation_rows(repeats, batch),
    }
    rows: dict[str, list[Row]] = {}
    with with_threads(threads or 1):
        for section in sections:
            say(f"section {section}")
            about = facts({"repeats": repeats, "batch": batch})
            rows[section] = measures[section]()
            if out is not None:
                write(out, "quant", {section: rows[section]}, about, SECTIONS)
    emit(frame(rows), json)


if __name__ == "__main__":
    from figures.command import run

    run(main, prog="python -m benchmarks.quant", description=DESCRIPTION)
