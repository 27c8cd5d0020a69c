"""Several checkpoints in one space: the tensors that they share, and the weights of each in them.

Methods that are folded into dense matrices are (W0 + s B A), so that different ranks, and full fine-tuning, meet in the
same tensors. The head always moves: it is part of what training changed.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from analyses.errors import AnalysisError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch
    from _typeshed import DataclassInstance

    from analyses.checkpoint import Checkpoint
    from analyses.command import OnStep
    from analyses.options import Options
    from analyses.store import Tables
    from landscape.objective import Objective
    from landscape.space import Space
    from landscape.trajectory import Trajectory

Shared = Literal["auto", "factors", "merged", "full"]
State = dict[str, "torch.Tensor"]
MARGIN = 1.2
"""How far the surface beneath checkpoints goes beyond the outermost one."""


def one_space(checkpoints: Sequence[Checkpoint], kind: Shared, centre: int) -> tuple[Space, list[State]]:
    """The space of the checkpoint ``centre``, and the tensors of every checkpoint by name.

    Parameters
    ----------
    checkpoints
        Of one task.
    kind
        ``factors``: an adapter's own tensors, of one method and size; ``merged``: the dense matrices that it changes;
        ``full``: all weights. ``auto``: the first of ``merged``, ``full`` and ``factors`` that all of them have.
    centre
        Which of them the space is made on.

    Raises
    ------
    AnalysisError
        If their tasks differ, or they have no such space in common.
    """
    from landscape.space import Space

    first = checkpoints[0]
    for other in checkpoints[1:]:
        if other.task.fingerprint != first.task.fingerprint:
            raise AnalysisError(f"{first.path} and {other.path} are of different tasks: their heads do not compare")
    chosen = _kind(checkpoints) if kind == "auto" else kind
    networks = [_network(c, chosen) for c in checkpoints]
    model, _ = networks[centre]
    wanted = set().union(*(names for _, names in networks))
    names = [name for name, _ in model.named_parameters() if name in wanted]
    states = [network.state_dict() for network, _ in networks]
    for c, state in zip(checkpoints, states, strict=True):
        for name in sorted(wanted):
            if any(name not in s or s[name].shape != state[name].shape for s in states if name in state):
                raise AnalysisError(
                    f"{c.path} and the others have no space {chosen!r} in common: {name} is not in all of them, of one "
                    "shape"
                )
    return Space(model, names, kind=chosen, head=True), states


def check_rest(space: Space, states: Sequence[State], checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse checkpoints that differ in a tensor that does not move: a way would not end at the other one.

    Raises
    ------
    AnalysisError
        Names the first such tensor.
    """
    import torch

    own = space.model.state_dict()
    for c, state in zip(checkpoints, states, strict=True):
        for name, tensor in own.items():
            still = name not in space.parameters and tensor.is_floating_point()
            if still and not torch.equal(tensor, state[name]):
                hint = "--space full" if name in dict(space.model.named_parameters()) else "no weights give it"
                raise AnalysisError(f"{c.path} differs in {name}, which stays in space {space.kind!r}: {hint}")


def before_training(checkpoint: Checkpoint) -> Checkpoint:
    """The same run with its weights before the first step, as they would be deployed.

    Raises
    ------
    AnalysisError
        If the checkpoint is no run folder: nothing else knows its initial weights.
    """
    from quant.fake import bake
    from train.build import load_into

    if checkpoint.run is None:
        raise AnalysisError(f"{checkpoint.path} is no run folder: nothing else knows where training started")
    model = checkpoint.run.model("latent", device=str(next(checkpoint.model.parameters()).device))
    load_into(model, checkpoint.run.initial_state(), str(checkpoint.path))
    return replace(checkpoint, model=bake(model), label="before training")


def beneath(
    seen: Trajectory,
    space: Space,
    objectives: Mapping[str, Objective],
    points: int,
    options: Options,
    parts: Path,
    on_step: OnStep,
) -> tuple[Tables, dict[str, Any]]:
    """The tables ``checkpoints`` and ``points``: their places in a plane, and the loss in it; and how it was chosen.

    Measured points are kept in ``parts``, from which a killed run goes on.
    """
    from landscape.surface import grid, plane

    axes = (grid(MARGIN * reach, points) for reach in seen.reach)
    found = plane(objectives, space, *seen.directions, *axes, workers=options.workers, store=parts, on_point=on_step)
    facts = {**found.provenance, **seen.provenance, "explained_share": seen.explained_share}
    return {"checkpoints": seen.to_frame(), "points": found.to_frame()}, facts


def run(
    name: str,
    paths: Sequence[Path],
    options: Options,
    spec: DataclassInstance,
    compute: Callable[..., tuple[Tables, dict[str, Any]]],
    *,
    steps: int,
    said: str,
    shown: str,
) -> None:
    """The command of an analysis of several checkpoints at once: open, say, measure, draw and print.

    Parameters
    ----------
    name, shown
        Of the analysis, and of the table that is printed.
    paths, options, spec
        What a person asked for.
    compute
        ``compute(checkpoints, options, spec, parts, on_step)``: tables and facts about them. What it leaves in the
        folder ``parts`` is there again for a run that goes on after it was killed, and deleted at the end.
    steps, said
        How many steps that has, and what is assumed, in words.

    Raises
    ------
    AnalysisError
        If the number of images is left to a pilot, which looks at lines through one checkpoint.
    """
    from analyses.checkpoint import open_all
    from analyses.options import settings_of
    from analyses.parallel import threads
    from analyses.store import announce, cached, draw
    from figures.command import emit, progress
    from figures.tables import key_of

    if options.rise_se is not None:
        raise AnalysisError(f"{name} takes --samples: --rise-se looks at lines through one checkpoint")
    opened, out = open_all(paths, options)
    announce(options.quiet, f"{', '.join(names(opened))}: {said}, {options.samples} images of each split, head moves")
    with threads(options.threads_each()), progress(steps, "steps", options.quiet) as bar:
        settings = {**options.settings(), **settings_of(spec), "checkpoints": [c.identity for c in opened]}
        parts = out / "tables" / name / "parts" / key_of(settings)

        def measure() -> tuple[Tables, dict[str, Any]]:
            tables, facts = compute(opened, options, spec, parts, lambda *_: bar.update())
            return tables, {**facts, "spent": [partial(shutil.rmtree, parts, ignore_errors=True)]}

        tables = cached(out / "tables" / name, settings, measure)
        bar.update(steps - bar.n)  # what was found finished
    draw(out, options.quiet, name)
    emit(tables[shown], options.json)


def names(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """A short name for each in a figure: its label and seed, or its folder where these are not enough."""
    short = [c.label if c.label == "before training" else f"{c.label}, seed {c.seed}" for c in checkpoints]
    return [s if short.count(s) == 1 else c.path.name for s, c in zip(short, checkpoints, strict=True)]


def _kind(checkpoints: Sequence[Checkpoint]) -> Shared:
    from train.methods import get

    methods = [get(c.method) for c in checkpoints]
    if all(m.linear for m in methods):
        return "merged"
    return "full" if all(m.linear or not m.has_adapter for m in methods) else "factors"


def _network(checkpoint: Checkpoint, kind: Shared) -> tuple[torch.nn.Module, list[str]]:
    """The network, dense where its method folds, and the names of its tensors that move."""
    from train.methods import get

    if kind != "full" or not get(checkpoint.method).linear:
        return checkpoint.network(kind, head=True)
    model, _ = checkpoint.network("merged", head=True)
    return model, [name for name, _ in model.named_parameters()]
