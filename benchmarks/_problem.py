"""A Hessian to be multiplied or taken apart, and how every tool is asked about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from benchmarks import _truth as truth
from benchmarks._isolated import Outcome, call
from benchmarks._settings import Settings
from benchmarks._subjects import Subject
from landscape.objective import Objective
from landscape.space import Space

TOLERANCE = 1e-3
"""Of a residual, in units of the largest eigenvalue; of a product, relative."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """A Hessian of the mean loss on a batch, by the named tensors."""

    subject: Subject
    space: Space
    inputs: Tensor
    targets: Tensor
    settings: Settings

    @classmethod
    def of(cls, subject: Subject, space: Space, settings: Settings) -> Problem:
        inputs, targets = subject.data(settings.batch)
        return cls(subject=subject, space=space, inputs=inputs, targets=targets, settings=settings)

    @property
    def size(self) -> int:
        """P."""
        return sum(p.numel() for p in self.space.parameters.values())

    @property
    def label(self) -> str:
        """For the table."""
        return f"{self.subject.label}, {self.size:,} parameters, {len(self.targets)} images"

    def objective(self) -> Objective:
        """Our objective, a fresh one."""
        return Objective(self.subject.model, self.inputs, self.targets)

    def multiply(self) -> Callable[[Tensor], Tensor]:
        """The true products."""
        return truth.products(self.subject.model, self.space.names, self.inputs, self.targets)

    def ask(self, function: str, tool: str, limit: float, **more: Any) -> tuple[Outcome, str]:
        """A tool's answer from a process of its own; as documented first, then with plain attention around the call.

        The text says whether that was needed, and why.
        """
        job = {
            "model": self.subject.model,
            "names": self.space.names,
            "inputs": self.inputs,
            "targets": self.targets,
            "seed": 0,
            "tool": tool,
            **more,
        }
        python = self.settings.landscaper if tool == "landscaper" else None
        ask = partial(call, function, module="_curvature_tools", limit=limit, python=python)
        found = ask({**job, "math": False})
        if tool == "ours" or "attention" not in (why := found.error or found.answer.get("failed", "")):
            return found, ""
        return ask(
            {**job, "math": True}
        ), f"as documented fails on today's torch: {why}; with sdpa_kernel(MATH) around it"


def failure(found: Outcome) -> str:
    """Why there is no answer; nothing where there is one."""
    error = found.error or found.answer.get("failed", "")
    if not error or found.timed_out:
        return error
    if error.startswith("ModuleNotFoundError"):
        return f"not installed: {error.partition(': ')[2]}"
    return f"fails on today's torch: {error}"


def joined(*parts: str) -> str:
    """The parts that say something."""
    return "; ".join(part for part in parts if part)
