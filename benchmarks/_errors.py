"""Whether errors that are stated hold: of surfaces of few points against all their points (NUMERICS 10), and the pilot.

A full grid is measured into a store that the surface of few points then reads from: it takes what it would measure.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks._rows import NAN, Row, say
from benchmarks._settings import Settings, Subjects
from benchmarks._subjects import Subject
from landscape.directions import draw, orthogonal_pair
from landscape.objective import Objective
from landscape.pilot import samples_for
from landscape.surface import grid, line, plane

ERROR = 0.005
PILOT = 64
"""Images of a pilot."""
SE = 0.05
"""Paired standard error of the rise that is asked for, in nats."""


def error_rows(subjects: Subjects, settings: Settings) -> list[Row]:
    """Surfaces of several seeds: the error stated, the error true, points evaluated."""
    rows, held, grids = [], 0, 0
    for subject, samples, seeds in subjects.checked(settings):
        found = [_checked(subject, samples, settings.check_axis, 2 * i) for i in range(seeds)]
        below = [true > stated for _, stated, true in found]
        held, grids = held + len(found) - sum(below), grids + len(found)
        points, stated, true = (statistics.median(column) for column in zip(*found, strict=True))
        rows.append(
            Row(
                what=f"{seeds} surfaces of {settings.check_axis} x {settings.check_axis}, {subject.label}, "
                f"{samples} images: largest true error",
                ours=100 * max(true for _, _, true in found),
                unit="% of range",
                compared_with="median stated",
                theirs=100 * stated,
                kind="ours",
                note=f"median true {100 * true:.2f} %; stated below true on {sum(below)}; median {points:.0f} points",
            )
        )
        say(f"{subject.label}: {rows[-1].note}")
    rows.append(
        Row(
            what="surfaces whose stated error is below the true one",
            ours=(grids - held) / grids,
            unit="share",
            compared_with="surfaces in all",
            theirs=grids,
            kind="ours",
            target=0.05,
            note=f"{grids - held} of {grids}, 99th percentile over the cells, {100 * ERROR:g} % asked for",
        )
    )
    return rows


def _checked(subject: Subject, samples: int, points: int, seed: int) -> tuple[int, float, float]:
    """Points evaluated, error stated and true error, as shares of the range drawn."""
    space = subject.space()
    dx, dy = orthogonal_pair(space, (seed, seed + 1))
    axis = grid(1.0, points)
    objective = subject.objective(samples)
    with tempfile.TemporaryDirectory() as folder:
        full = plane(objective, space, dx, dy, axis, axis, store=Path(folder)).values()
        few = plane(objective, space, dx, dy, axis, axis, error=ERROR, store=Path(folder))
    facts = few.provenance["interpolation"]
    away = np.abs(few.values() - full)
    true = float(np.quantile(away, facts["quantile"]) / np.ptp(full))
    return facts["evaluated"], max(facts["estimated_error"].values()), true


def image_rows(subjects: Subjects, settings: Settings) -> list[Row]:
    """Images for a paired standard error, once for a comparison of three models, over all there are."""
    compared = [subjects["sharp"], subjects["adaptformer"], subjects["onebit"]]
    pilot = min(PILOT, settings.samples)
    chosen = max(_needed(subject, pilot) for subject in compared)
    every = len(compared[0].images)
    taken = int(min(chosen, every))
    ends = [_ends(subject, taken) for subject in compared]
    paired, unpaired = max(p for p, _ in ends), max(u for _, u in ends)
    passes = pilot * 3 / every  # the centre and both ends
    return [
        Row(
            what=f"images for a paired standard error of {SE:g} nats at alpha 1, one number for {len(compared)} models",
            ours=taken,
            unit="images",
            compared_with="all training images",
            theirs=every,
            target=1.0,
            note=f"a pilot of {pilot} images asked for {chosen:.0f}, at the cost of {passes:.2f} passes over all; the "
            f"largest standard error with them is {paired:.3f}; without pairing it would be {unpaired:.3f}",
        )
    ]


def _needed(subject: Subject, pilot: int) -> float:
    space = subject.space()
    return samples_for(_drawn(subject, pilot), space, [draw(space, 0)], extent=1.0, se=SE).value


def _ends(subject: Subject, samples: int) -> tuple[float, float]:
    """Largest paired standard error of the rise at both ends of the line, and that of two independent samples."""
    space = subject.space()
    found = line(_drawn(subject, samples), space, draw(space, 0), [-1.0, 0.0, 1.0])
    apart = [(a**2 + found.values("loss_se_nats")[1] ** 2) ** 0.5 for a in found.values("loss_se_nats")[[0, 2]]]
    return max(found.values("rise_se_nats")[[0, 2]], default=NAN), max(apart)


def _drawn(subject: Subject, samples: int) -> Objective:
    """The loss on images drawn without replacement from all, the same for every model."""
    rows = np.sort(np.random.default_rng(0).permutation(len(subject.images))[:samples])
    return Objective(subject.model, subject.transform(subject.images[rows]), subject.targets[rows])
