"""Surfaces: bare passes, the reference, few points for all, and what other tools draw."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _reference as reference
from benchmarks._bare import best_batch_size, passes
from benchmarks._isolated import call
from benchmarks._problem import failure
from benchmarks._rows import Row, alternated, say
from benchmarks._settings import Settings, Subjects
from benchmarks._subjects import Subject
from landscape.surface import Surface, grid, plane

ERROR = 0.005
POINTS_TARGET = {"calm": 137, "sharp": 175}
SPEEDUP_TARGET = {"calm": 18, "sharp": 14}
AGREE = 1e-4
"""Largest difference of two losses, over the range drawn, that counts as the same answer in float32."""


class Timed:
    """One subject made ready: its data, its plane, its best batch size, the reference on the same plane."""

    def __init__(self, subject: Subject, settings: Settings) -> None:
        self.subject, self.settings = subject, settings
        self.inputs, self.targets = subject.data(settings.samples)
        self.batch_size = best_batch_size(subject.model, self.inputs)
        self.space = subject.space()
        self.dx, self.dy = subject.pair()
        self.block = grid(1.0, settings.block)
        say(f"{subject.label}: best batch size of {len(self.inputs)} images is {self.batch_size}")

    def ours(self, axis: Any = None, batch_size: int | None = None, error: float | None = None) -> Surface:
        """Our surface on an axis by itself, a fresh objective each time."""
        axis = self.block if axis is None else axis
        objective = self.subject.objective(self.settings.samples, batch_size or self.batch_size)
        return plane(objective, self.space, self.dx, self.dy, axis, axis, error=error)

    def bare(self) -> None:
        """As many bare passes as a block has points."""
        passes(self.subject.model, self.inputs, self.batch_size, len(self.block) ** 2)

    def reference(self, batches: reference.Batches | None = None, axis: Any = None) -> np.ndarray:
        """Losses by the reference on our plane, its data in memory if no batches are given."""
        parameters = list(self.space.parameters.values())
        dx, dy = (list(d.tensors.values()) for d in (self.dx, self.dy))
        axis = self.block if axis is None else axis
        data = batches or reference.in_memory(self.inputs, self.targets, self.batch_size)
        return reference.surface(self.subject.model, parameters, dx, dy, axis, axis, data)[0]


def grid_rows(subjects: Subjects, settings: Settings) -> list[Row]:
    """A float32 grid with loss, accuracy and standard errors over the bare forward passes of its points."""
    rows = []
    for subject in subjects.surfaces():
        timed = Timed(subject, settings)
        default = subject.objective(settings.samples).batch_size
        found = timed.ours().values()
        wrong = _away(found, timed.reference())
        points = found.size
        seconds = alternated(
            {"bare": timed.bare, "ours": timed.ours, "default": partial(timed.ours, batch_size=default)},
            settings.repeats,
        )
        checked = f"losses equal the reference's to {wrong:.0e} of their range"
        for name, size in (("ours", timed.batch_size), ("default", min(default, settings.samples))):
            rows.append(
                Row(
                    what=f"grid point, {subject.label}, batch {size}",
                    ours=seconds[name] / points,
                    compared_with=f"bare pass, batch {timed.batch_size}",
                    theirs=seconds["bare"] / points,
                    target=1.05,
                    note=f"loss, accuracy, standard errors, radii; {points} points a block with the centre's own pass "
                    f"and determinism check; {checked}" if wrong <= AGREE else f"WRONG: {wrong:.1e} from the reference",
                )
            )  # fmt: skip
    return rows


def reference_rows(subjects: Subjects, settings: Settings) -> list[Row]:
    """Per point: the reference with its data in memory, and decoding them in each, beside ours."""
    rows = []
    for subject in subjects.surfaces():
        timed = Timed(subject, settings)
        with tempfile.TemporaryDirectory() as folder:
            paths = reference.write_images(Path(folder), subject.images[: settings.samples])
            files = reference.decoding(paths, timed.targets, subject.transform, timed.batch_size)  # type: ignore[arg-type]
            ours = timed.ours().values()
            away = {"memory": _away(ours, timed.reference()), "files": _away(ours, timed.reference(files))}
            seconds = alternated(
                {"ours": timed.ours, "memory": timed.reference, "files": partial(timed.reference, files)},
                settings.repeats,
            )
        points = len(timed.block) ** 2
        for name, what in (("memory", "data in memory"), ("files", "decoding PNG files in each point")):
            rows.append(
                Row(
                    what=f"point, {subject.label}",
                    ours=seconds["ours"] / points,
                    compared_with=f"reference of Li et al., {what}",
                    theirs=seconds[name] / points,
                    kind="speedup",
                    note=f"{points * settings.repeats} points each; losses equal to {away[name]:.0e} of their range",
                )
            )
    return rows


def adaptive_rows(subjects: Subjects, settings: Settings) -> list[Row]:
    """The whole surface to the asked error: points evaluated, the error estimated, and with full grids the true one.

    A full grid is measured first, into a store that the surface of few points then reads what it would measure from.
    """
    rows = []
    axis = grid(1.0, settings.axis)
    every = f"all {settings.axis} x {settings.axis}"
    for subject, samples in subjects.whole_surfaces(settings):
        label = f"{subject.label}, {samples} images"
        space, (dx, dy) = subject.space(), subject.pair()
        store = subjects.out / "grids" / f"{subject.name}-{samples}-{settings.axis}" if settings.full_grids else None
        full = plane(subject.objective(samples), space, dx, dy, axis, axis, store=store) if store else None
        found = plane(subject.objective(samples), space, dx, dy, axis, axis, error=ERROR, store=store)
        facts = found.provenance["interpolation"]
        values = found.values()
        span = f"loss {values.min():.3g} to {values.max():.3g} nats"
        why = facts["all_evaluated_because"]
        estimated = 100 * max(facts["estimated_error"].values())
        say(f"{label}: {facts['evaluated']} points, estimated error {estimated:.2f} %")
        rows += [
            Row(
                what=f"adaptive surface, {label}: points evaluated",
                ours=facts["evaluated"],
                unit="points",
                compared_with=every,
                theirs=facts["points"],
                kind="ours",
                target=POINTS_TARGET.get(subject.name, float("nan")),
                note=f"{span}; {why}" if why else span,
            ),
            Row(
                what=f"adaptive surface, {label}: error estimated, 99th percentile",
                ours=estimated,
                unit="% of range",
                compared_with="asked",
                theirs=100 * ERROR,
                kind="ours",
                target=100 * ERROR,
            ),
        ]
        if full:
            true = full.values()
            error = 100 * float(np.quantile(np.abs(values - true), facts["quantile"]) / (true.max() - true.min()))
            rows.append(
                Row(
                    what=f"adaptive surface, {label}: true error, 99th percentile",
                    ours=error,
                    unit="% of range",
                    compared_with="estimated",
                    theirs=estimated,
                    kind="ours",
                    target=100 * ERROR,
                    note=f"against {every} points evaluated; largest {100 * _away(values, true):.2f} %",
                )
            )
            say(f"{label}: true error {error:.2f} %")
    return rows


def together_rows(subjects: Subjects, settings: Settings) -> list[Row]:
    """The reference with its data in memory on all points over the whole of our adaptive surface."""
    rows = []
    axis = grid(1.0, settings.axis)
    for subject in subjects.surfaces():
        timed = Timed(subject, settings)
        points: list[int] = []

        def ours(timed: Timed = timed, points: list[int] = points) -> None:
            points.append(timed.ours(axis, error=ERROR).provenance["interpolation"]["evaluated"])

        seconds = alternated({"reference": timed.reference, "ours": ours}, settings.repeats)
        a_point = seconds["reference"] / len(timed.block) ** 2
        rows.append(
            Row(
                what=f"surface of {settings.axis} x {settings.axis}, {subject.label}, error {100 * ERROR:g} %",
                ours=seconds["ours"],
                compared_with="reference of Li et al., data in memory",
                theirs=a_point * len(axis) ** 2,
                kind="speedup",
                target=SPEEDUP_TARGET.get(subject.name, float("nan")),
                note=f"{points[0]} points evaluated, everything included; the reference at {a_point:.3f} s a point, "
                f"timed on {len(timed.block) ** 2 * settings.repeats}",
            )
        )
    return rows


def tool_rows(subjects: Subjects, settings: Settings) -> list[Row]:
    """A point of a surface by other tools; what they return is held against a loop along their own directions."""
    rows = []
    subject = subjects.surfaces()[-1]
    timed = Timed(subject, settings)
    points = settings.block**2
    for name, function, python in (
        ("loss-landscapes", "loss_landscapes", None),
        ("landscaper", "landscaper", settings.landscaper),
    ):
        ours = alternated({"ours": timed.ours}, settings.repeats)["ours"]
        job = {"model": subject.model, "inputs": timed.inputs, "targets": timed.targets}
        found = call(function, {**job, "seed": 0, "steps": settings.block}, module="_surface_tools", python=python)
        taken, note = float("nan"), failure(found)
        if found.answer:
            taken, wrong = found.answer["seconds"] / points, found.answer["away"] > ERROR
            note = (
                f"off by {100 * found.answer['away']:.2g} % of the range from a loop along its own directions, whose "
            )
            note += (
                f"cosine is {found.answer['cosine']:.2f}, {100 * found.answer['positive']:.0f} % of entries positive"
            )
            if wrong:
                taken, note = float("nan"), f"WRONG ({taken:.3g} s a point): {note}"
        rows.append(
            Row(
                what=f"point, {subject.label}, loss alone for the other",
                ours=ours / points,
                compared_with=name,
                theirs=taken,
                kind="speedup",
                note=note,
            )
        )
    return rows


def _away(values: np.ndarray, true: np.ndarray) -> float:
    """Largest difference over the range."""
    return float(np.abs(values - true).max() / (true.max() - true.min()))
