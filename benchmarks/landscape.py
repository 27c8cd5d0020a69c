"""The landscape engine beside bare passes, the reference and other tools: ``python -m benchmarks.landscape``."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from benchmarks._rows import Row
    from benchmarks._settings import Settings, Subjects

Section = Literal[
    "grid", "reference", "adaptive", "errors", "images", "together", "surface tools",
    "products", "eigenvalues", "density", "memory", "device",
]  # fmt: skip
SECTIONS: tuple[Section, ...] = (
    "grid", "reference", "adaptive", "errors", "images", "together", "surface tools",
    "products", "eigenvalues", "density", "memory", "device",
)  # fmt: skip
DESCRIPTION = """Time the landscape engine beside bare forward passes, the reference of Li et al. and other tools.

Models are trained first (the shipped network, fine-tuned on digits from its weights and from random ones, and with two
adapters) into a temporary folder, or below --models. The table comes on stdout; --out also writes results/landscape.csv
and .json and README.md below a folder, in which the sections measured now replace the earlier ones."""


def main(
    sections: tuple[Section, ...] = SECTIONS,
    run: tuple[Path, ...] = (),
    also: tuple[Path, ...] = (),
    full_grids: bool = False,
    quick: bool = False,
    tiny: bool = False,
    samples: int | None = None,
    epochs: int = 6,
    threads: int | None = None,
    device: str = "cpu",
    landscaper: Path | None = None,
    models: Path | None = None,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Measure.

    Args:
        sections: Which parts of the table.
        run: Run folders to measure in place of the trained models; of several, the first for curvature and memory.
        also: Run folders whose whole adaptive surfaces are drawn too, such as one of another architecture.
        full_grids: Evaluate all points of the adaptive surfaces too, and give their true error.
        quick: Fewer images, points and repeats: whether everything runs, not how fast.
        tiny: A net of 322 parameters in place of the trained models; without targets.
        samples: Images of the surfaces; 200 if left out.
        epochs: Of the training.
        threads: Of torch; one if left out.
        device: Where the share of the matmul peak is measured: cpu, cuda.
        landscaper: Interpreter of an environment with landscaper.
        models: Where models are trained and found again.
        out: Folder to write to, such as ./benchmarks.
        json: The result as JSON.
    """
    from dataclasses import asdict, replace

    from analyses.parallel import threads as with_threads
    from benchmarks._report import facts, frame, write
    from benchmarks._rows import say
    from benchmarks._settings import Settings, Subjects
    from figures.command import emit

    settings = Settings(full_grids=full_grids, device=device, landscaper=landscaper)
    if quick:
        settings = replace(
            settings,
            samples=32,
            batch=32,
            spectrum=32,
            repeats=2,
            block=3,
            axis=21,
            products=3,
            points=50,
            check_axis=9,
            check_seeds=1,
        )
    if samples is not None:
        settings = replace(settings, samples=samples)
    rows: dict[str, list[Row]] = {}
    with with_threads(threads or 1), _folder(models) as folder:
        subjects = Subjects(out=folder, epochs=1 if quick else epochs, runs=run, also=also, small=tiny)
        for section in sections:
            say(f"section {section}")
            about = facts(
                {**asdict(settings), "landscaper": None, "epochs": subjects.epochs, "runs": len(run), "also": len(also)}
            )
            rows[section] = measure(section, subjects, settings)
            if out is not None:  # section by section: what was measured is kept
                write(out, "landscape", {section: rows[section]}, about, SECTIONS)
    emit(frame(rows), json)


def measure(section: Section, subjects: Subjects, settings: Settings) -> list[Row]:
    """The rows of one section; of a tiny net without targets, which speak of real ones."""
    from dataclasses import replace

    from benchmarks import _device, _errors, _memory, _products, _spectra, _surfaces

    measures: dict[Section, Callable[[Subjects, Settings], list[Row]]] = {
        "grid": _surfaces.grid_rows,
        "reference": _surfaces.reference_rows,
        "adaptive": _surfaces.adaptive_rows,
        "errors": _errors.error_rows,
        "images": _errors.image_rows,
        "together": _surfaces.together_rows,
        "surface tools": _surfaces.tool_rows,
        "products": _products.product_rows,
        "eigenvalues": _spectra.eigenvalue_rows,
        "density": _spectra.density_rows,
        "memory": _memory.memory_rows,
        "device": _device.device_rows,
    }
    rows = measures[section](subjects, settings)
    return [replace(row, target=float("nan")) for row in rows] if subjects.small else rows


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


if __name__ == "__main__":
    from figures.command import run as run_command

    run_command(main, prog="python -m benchmarks.landscape", description=DESCRIPTION)
