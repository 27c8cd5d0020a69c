"""A call in a process of its own: its crash, its memory and its never ending are not ours; other environments too.

``python -m benchmarks._isolated MODULE FUNCTION JOB ANSWER`` in the child: the job is read with ``torch.load``, the
function's answer is written with ``torch.save``. What is in them is tensors and plain data, so that another NumPy reads
it. The child has as many threads as this process.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call ended: with an answer, with an error (its first line), or at the time limit."""

    answer: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    timed_out: bool = False


def call(
    function: str, job: dict[str, Any], *, limit: float = 600.0, python: Path | None = None, module: str = "_peers"
) -> Outcome:
    """Call ``benchmarks.<module>.<function>(job)`` in a fresh process.

    Parameters
    ----------
    job
        Tensors, a model, plain data; and ``threads`` is added.
    limit
        Seconds of the processor, with what it takes to start; of the wall forty times as many.
    python
        Interpreter of another environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        sent, received = Path(folder) / "job", Path(folder) / "answer"
        torch.save({**job, "threads": torch.get_num_threads(), "limit": math.ceil(limit)}, sent)
        command = [str(python or sys.executable), "-m", "benchmarks._isolated", module, function, sent, received]
        before = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([str(_ROOT), *([before] if before else [])])
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=40 * limit, env={**os.environ, "PYTHONPATH": path}
            )
            stopped = -done.returncode in (signal.SIGXCPU, signal.SIGKILL)
        except subprocess.TimeoutExpired:
            stopped = True
        if stopped:
            return Outcome(error=f"stopped after {limit:.0f} s", timed_out=True)
        if not received.exists():
            last = done.stderr.strip().splitlines()
            return Outcome(error=last[-1] if last else f"ended with code {done.returncode}")
        answer = torch.load(received, weights_only=False)
    return Outcome(error=answer["error"]) if "error" in answer else Outcome(answer=answer)


def main(module: str, function: str, sent: Path, received: Path) -> None:
    """The child's part: whatever a tool raises is its answer."""
    from importlib import import_module

    job = torch.load(sent, weights_only=False)
    torch.set_num_threads(job["threads"])
    resource.setrlimit(resource.RLIMIT_CPU, (job["limit"], job["limit"] + 10))
    try:
        answer = getattr(import_module(f"benchmarks.{module}"), function)(job)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        answer = {"error": f"{type(error).__name__}: {first}"}
    torch.save(answer, received)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
