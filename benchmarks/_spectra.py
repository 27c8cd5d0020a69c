"""The Hessian's top eigenvalues and its spectral density: ours over the time that others need to get them right."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks import _truth as truth
from benchmarks._problem import TOLERANCE, Problem, failure, joined
from benchmarks._products import TOOLS
from benchmarks._rows import NAN, Row, say
from benchmarks._settings import Settings, Subjects
from benchmarks._subjects import Subject
from landscape.curvature import Hessian, top_eigenvalues

LADDERS: dict[str, list[dict[str, Any]]] = {
    "PyHessian": [{}, {"maxIter": 1000, "tol": 1e-4}, {"maxIter": 1000, "tol": 1e-6}],
    "landscaper": [{}, {"maxIter": 1000, "tol": 1e-4}, {"maxIter": 1000, "tol": 1e-6}],
    "hessian-eigenthings": [{}, *({"max_iter": steps} for steps in (20, 40, 80, 160))],
    "curvlinops": [{"tol": 1e-2}, {"tol": 1e-3}, {"tol": 1e-4}, {}],
}
"""Settings tried one after another, the tool's own first (SciPy's, for curvlinops, ask for all digits: last), until the
answer is right: the seconds of that one attempt count."""
DENSITIES: dict[str, dict[str, Any]] = {
    "PyHessian": {},
    "landscaper": {},
    "hessian-eigenthings": {"num_runs": 4, "lanczos_steps": 24},
}
"""The tools' own settings where they can be afforded; for hessian-eigenthings as many products as ours."""


def eigenvalue_rows(subjects: Subjects, settings: Settings) -> list[Row]:
    """The top five eigenvalues, each residual at most 1e-3 of the largest: ours over each tool's time to get there."""
    problem = _whole(subjects.whole(), settings)
    top, row = _true_top(problem)
    rows = [row] if row else []
    multiply = problem.multiply()
    ours = problem.ask("eigenvalues", "ours", 3600, settings={})[0].answer
    wrong, left = truth.wrong_pairs(top, multiply, ours["values"], ours["vectors"], TOLERANCE)
    checked = f"WRONG: {wrong}" if wrong else f"all right, largest residual {left:.0e} lambda_max"
    say(f"{problem.label}: our top 5 in {ours['seconds']:.1f} s, {checked}")
    for tool in TOOLS:
        theirs, at_least, said = _climb(problem, tool, top, multiply, max(60.0, settings.most * ours["seconds"]))
        rows.append(
            Row(
                what=f"top 5 eigenvalues, {problem.label}",
                ours=NAN if wrong else ours["seconds"],
                compared_with=tool,
                theirs=theirs,
                at_least=at_least,
                target=1.0,
                note=f"ours: {checked}; theirs: {said}",
            )
        )
    return rows


def _climb(
    problem: Problem, tool: str, top: truth.Top, multiply: Callable[[Tensor], Tensor], limit: float
) -> tuple[float, bool, str]:
    """Seconds of the first right answer, or those at which it had none (and True); and what happened on the way."""
    steps: list[str] = []
    before = ""
    for settings in LADDERS[tool]:
        found, said = problem.ask("eigenvalues", tool, limit, settings=settings)
        before = before or said
        name = ", ".join(f"{k}={v:g}" for k, v in settings.items()) or "its own settings"
        if found.timed_out:
            steps.append(f"{name}: not done after {limit:.0f} s")
            return limit, True, joined(before, "; ".join(steps))
        if not found.answer:
            return NAN, False, joined(before, failure(found))
        seconds = found.answer["seconds"]
        wrong, left = truth.wrong_pairs(top, multiply, found.answer["values"], found.answer["vectors"], TOLERANCE)
        say(f"{tool}, {name}: {seconds:.1f} s, {wrong or 'right'}")
        steps.append(f"{name}: {seconds:.0f} s, " + (wrong or f"all right, largest residual {left:.0e} lambda_max"))
        if not wrong:
            return seconds, False, joined(before, "; ".join(steps))
    return NAN, False, joined(before, "never right; " + "; ".join(steps))


@cache
def _whole(subject: Subject, settings: Settings) -> Problem:
    """By all parameters, one for all sections."""
    return Problem.of(subject, subject.everything(), replace(settings, batch=settings.spectrum))


@cache
def _true_top(problem: Problem) -> tuple[truth.Top, Row | None]:
    """The eigenvalues that count as true: of the whole matrix where it is small, else ours whose residuals hold."""
    names, model = problem.space.names, problem.subject.model
    if problem.size <= 2000:
        values = torch.linalg.eigvalsh(truth.dense(model, names, problem.inputs, problem.targets)).flip(0)
        return truth.Top(algebraic=values[:5], magnitude=values[values.abs().argsort(descending=True)[:5]]), None
    found: dict[str, Tensor] = {}
    worst = 0.0
    for end in ("largest", "magnitude"):
        with Hessian(problem.objective(), problem.space) as hessian:
            pairs = top_eigenvalues(hessian, 6, end=end, tolerance=1e-4)  # type: ignore[arg-type]
        found[end] = torch.from_numpy(pairs.values)
        left = truth.residuals(problem.multiply(), found[end], pairs.vectors) / float(found[end].abs().max())
        worst = max(worst, float(left.max()))
    top = truth.Top(algebraic=found["largest"][:5], magnitude=found["magnitude"][:5])
    values = ", ".join(f"{v:.4g}" for v in top.algebraic.tolist())
    row = Row(
        what=f"true eigenvalues, {problem.label}: largest residual by forward over reverse",
        ours=worst,
        unit="lambda_max",
        compared_with="bound",
        theirs=TOLERANCE / 5,
        kind="ours",
        target=TOLERANCE / 5,
        note=f"largest {values}; largest in magnitude {', '.join(f'{v:.4g}' for v in top.magnitude.tolist())}",
    )
    return top, row


def density_rows(subjects: Subjects, settings: Settings) -> list[Row]:
    """A spectral density: ours with its band, other tools' as documented; moments and ends are checked."""
    problem = _whole(subjects.whole(), settings)
    top, _ = _true_top(problem)
    true = truth.moments(problem.multiply(), problem.size, float(top.algebraic[0]))
    ours = problem.ask("density", "ours", 3600, settings={})[0].answer
    wrong = truth.wrong_density(true, ours["nodes"], ours["weights"])
    checked = f"WRONG: {wrong}" if wrong else _probes(ours["nodes"])
    say(f"{problem.label}: our density in {ours['seconds']:.1f} s, {checked}")
    rows = []
    for tool, chosen in DENSITIES.items():
        found, said = problem.ask("density", tool, max(120.0, 2 * settings.most * ours["seconds"]), settings=chosen)
        taken, bad = found.answer.get("seconds", NAN), failure(found)
        # One that failed after its products has taken at least what it needs; a wrong answer's time does not count.
        at_least = bool(bad) and not math.isnan(taken)
        if not bad and (off := truth.wrong_density(true, found.answer["nodes"], found.answer["weights"])):
            bad, taken = f"WRONG after {taken:.0f} s: {off}", NAN
        said = joined(said, bad or _probes(found.answer["nodes"]))
        rows.append(
            Row(
                what=f"spectral density with its band, {problem.label}",
                ours=NAN if wrong else ours["seconds"],
                compared_with=tool,
                theirs=taken,
                at_least=at_least,
                target=1.0 if tool == "PyHessian" else NAN,
                note=f"ours: {checked}; theirs: {said}",
            )
        )
        say(f"density, {tool}: {taken:.1f} s, {said}")
    return rows


def _probes(nodes: list[Tensor]) -> str:
    steps = f"of {len(nodes[0])} steps"
    return f"right, one probe {steps}, no band" if len(nodes) == 1 else f"right, {len(nodes)} probes {steps}"
