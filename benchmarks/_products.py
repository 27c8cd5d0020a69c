"""Products with the Hessian: ours in bare passes of the batch, and beside those of other tools."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from benchmarks import _truth as truth
from benchmarks._bare import best_batch_size, passes
from benchmarks._curvature_tools import vectors_of
from benchmarks._problem import TOLERANCE, Problem, failure, joined
from benchmarks._rows import NAN, Row, alternated
from benchmarks._settings import Settings, Subjects
from benchmarks._subjects import Subject
from landscape.curvature import CentralDifference, Hessian
from landscape.curvature.operator import ModelOperator

TOOLS = ("PyHessian", "hessian-eigenthings", "curvlinops", "landscaper")


def product_rows(subjects: Subjects, settings: Settings) -> list[Row]:
    """Products of one batch, opening included and spread over all of them, in bare passes; then other tools'."""
    rows = []
    whole = Problem.of(subjects.whole(), subjects.whole().everything(), settings)
    rows += _over_all(subjects.whole(), settings)
    for problem, target in [(whole, 7.5), *((Problem.of(s, s.space(), settings), 5.5) for s in subjects.adapters())]:
        rows += _in_passes(problem, target)
    return rows + _beside_products(whole)


def _in_passes(problem: Problem, target: float) -> list[Row]:
    settings, model = problem.settings, problem.subject.model
    batch_size = best_batch_size(model, problem.inputs)
    vectors = vectors_of(0, settings.products, problem.size)
    exact = problem.multiply()(vectors[0])
    errors: dict[str, float] = {}
    stated: list[float] = []

    def multiply(kind: type[ModelOperator]) -> None:
        with kind(problem.objective(), problem.space) as operator:
            found = [operator.product(v) for v in vectors]
            if isinstance(operator, CentralDifference):
                stated.append(operator.relative_error)
        errors[kind.name] = truth.relative(found[0], exact)

    seconds = alternated(
        {
            "bare": partial(passes, model, problem.inputs, batch_size, settings.products),
            "exact": partial(multiply, Hessian),
            "difference": partial(multiply, CentralDifference),
        },
        settings.repeats,
    )
    a_pass = seconds["bare"] / settings.products
    common = {"compared_with": f"bare pass of the batch, batch size {batch_size}", "theirs": a_pass}
    return [
        Row(
            what=f"Hessian product, {problem.label}",
            ours=seconds["exact"] / settings.products,
            target=target,
            note=f"opening included, spread over {settings.products}; {_error(errors['hessian'])}",
            **common,  # type: ignore[arg-type]
        ),
        Row(
            what=f"central difference, {problem.label}",
            ours=seconds["difference"] / settings.products,
            note=f"{_error(errors['central_difference'])}, the error that it states {stated[0]:.0e}; "
            "the first product takes two more gradients for that",
            **common,  # type: ignore[arg-type]
        ),
    ]


def _over_all(subject: Subject, settings: Settings) -> list[Row]:
    """Products over all images, in batches: with graphs kept while they fit into memory, and with none kept."""
    problem = Problem.of(subject, subject.everything(), replace(settings, batch=len(subject.images)))
    batch_size = best_batch_size(subject.model, problem.inputs)
    vectors = vectors_of(0, 3, problem.size)
    kept: dict[str, float] = {}

    def multiply(keep_bytes: int | None) -> None:
        with Hessian(problem.objective(), problem.space, keep_bytes=keep_bytes) as operator:
            for v in vectors:
                operator.product(v)
            kept[str(keep_bytes)] = operator.graphs.kept

    bare = partial(passes, subject.model, problem.inputs, batch_size, len(vectors))
    seconds = alternated({"bare": bare, "None": partial(multiply, None), "0": partial(multiply, 0)}, 1)
    return [
        Row(
            what=f"Hessian product over batches of 64, {problem.label}",
            ours=seconds[name] / len(vectors),
            compared_with=f"bare pass of all, batch size {batch_size}",
            theirs=seconds["bare"] / len(vectors),
            note=f"opening included, spread over {len(vectors)}; graphs kept of {kept[name]:.0%} of the images",
        )
        for name in ("None", "0")
    ]


def _beside_products(problem: Problem) -> list[Row]:
    settings = problem.settings
    # as many vectors as the tools draw: the first of one is not the first of several
    exact = problem.multiply()(vectors_of(0, settings.products, problem.size)[0])
    ask = partial(problem.ask, "product", count=settings.products, limit=1800)
    ours = ask("ours")[0].answer["seconds"] / settings.products
    rows = []
    for tool in TOOLS:
        found, said = ask(tool)
        away = truth.relative(found.answer["product"], exact) if found.answer else NAN
        right = away <= TOLERANCE
        rows.append(
            Row(
                what=f"Hessian product, {problem.label}",
                ours=ours,
                compared_with=tool,
                theirs=found.answer["seconds"] / settings.products if right else NAN,
                note=joined(said, failure(found) or ("" if right else "WRONG, ") + _error(away)),
            )
        )
    return rows


def _error(relative: float) -> str:
    return f"off by {relative:.0e} of its norm from forward over reverse"
