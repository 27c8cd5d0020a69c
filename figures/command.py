"""What every command of the toolkit shares: its options, its exit codes, what goes to stdout and what to stderr.

stdout carries the result and nothing else; progress, warnings and errors go to stderr. Exit codes: 0 done, 1 a defect
(with its traceback), 2 the input or the machine refused (one line), 130 stopped by Ctrl-C (one line: what goes on).
It lies in the lowest layer because every layer above has commands.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import pandas as pd
    from tqdm import tqdm

INTERRUPTED = 130
BROKEN_PIPE = 141


def run(main: Callable[..., Any], *, prog: str, description: str | None = None) -> NoReturn:
    """Parse ``sys.argv`` into the arguments of ``main``, call it, and leave with the right exit code.

    Parameters
    ----------
    main
        A function with type hints; an argument marked ``tyro.conf.Positional`` is positional, a dataclass gives its
        fields as flags without a prefix, a bool that is False by default is a bare flag. An int that it returns is the
        exit code.
    prog
        The command as a person types it, for example ``"python -m train"``.
    description
        The first lines of ``--help``; the function's docstring if left out.

    It never returns. The code is 0 or what ``main`` returned; 2 for an unknown flag or value, for an exception that
    carries ``exit_code = 2`` and for an OSError; 130 for Ctrl-C. Any other exception passes: Python prints its
    traceback and exits with 1.
    """
    import tyro

    _unshadowed()
    warnings.formatwarning = _as_a_line
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            call = tyro.cli(_later(main), prog=prog, description=description, config=config)
    except SystemExit as stop:
        if stop.code:
            print(f"error: {_without_box(said.getvalue())}", file=sys.stderr)
        sys.exit(stop.code)
    except BrokenPipeError:  # `--help | head` closed the pipe: nobody reads on, and that is no error worth a line
        _drop_stdout()
        sys.exit(BROKEN_PIPE)
    try:
        code = call()
        sys.stdout.flush()  # a full disk shows here, not at interpreter shutdown
    except KeyboardInterrupt:
        again = shlex.join(sys.argv[1:])
        print(f"\ninterrupted; this goes on: {prog} {again}".rstrip(), file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _drop_stdout()
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        _drop_stdout()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        exit_code = 2 if _out_of_memory(error) else getattr(error, "exit_code", None)
        if not isinstance(exit_code, int):
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _unshadowed() -> None:
    """Let no file of the current folder, such as a person's own ``train.py``, stand for a package of the toolkit.

    ``python -m`` looks there first.
    """
    home = Path(__file__).resolve().parents[1]
    ours = ("landscape", "quant", "train", "analyses", "figures")
    hidden = [
        entry
        for entry in sys.path[:1]
        if (folder := Path(entry or ".").resolve()) != home
        and any((folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists() for name in ours)
    ]
    sys.path[:] = sys.path[len(hidden) :]


def _later(main: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """The function with the same arguments that only binds them, so that parsing can fail apart from running."""

    @functools.wraps(main)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return functools.partial(main, *args, **kwargs)

    return bind


def _as_a_line(message: Warning | str, *_: object, **__: object) -> str:
    # what a person can act on, not where in the code it was said
    return f"warning: {' '.join(str(message).split())}\n"


def _without_box(text: str) -> str:
    """The parser's message, drawn as a box over several lines, on one."""
    lines = (line.strip("│╭╮╰╯─ \n") for line in text.splitlines())
    heads = ("Parsing error", "Value error")
    said = [line for line in lines if line.strip("-")]  # where stderr is ASCII the box is drawn in hyphens
    kept = [line for line in said if line not in heads and not line.startswith("For full helptext")]
    # A group of settings that refuses its values in words of its own is not named before them.
    return re.sub(r"^Error parsing [\w.]+: ", "", " ".join(kept))


def _out_of_memory(error: BaseException) -> bool:
    """Whether the machine had too little memory: Python's error, or torch's, which has a class on CUDA alone."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def emit(frame: pd.DataFrame, json: bool = False) -> None:
    """Print a result on stdout: a table on a terminal, CSV in a pipe or file, JSON records if asked.

    CSV and JSON keep every digit. What JSON lacks: NaN becomes ``null``, the infinities ``"inf"`` and ``"-inf"``.
    """
    if json:
        import json as json_module

        records = [{str(k): _json_value(v) for k, v in row.items()} for row in frame.to_dict("records")]
        text = json_module.dumps(records, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    elif sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = frame.to_string(index=False, float_format=lambda x: f"{x:.4g}", line_width=width) + "\n"
    else:
        text = frame.to_csv(index=False, lineterminator="\n")
    sys.stdout.write(text)


def progress(work: Iterable[Any] | int | None, desc: str = "", quiet: bool = False) -> tqdm:
    """A progress bar on stderr: around an iterable, or counting by hand (``.update()``) to a total given as an int.

    With None the total is not known: what is done is counted.

    In a log file (stderr is no terminal) a line every 30 seconds instead of a moving bar.
    """
    from tqdm import tqdm

    iterable, total = (None, work) if work is None or isinstance(work, int) else (work, None)
    every = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(
        iterable, total=total, desc=desc, disable=quiet, file=sys.stderr, mininterval=every, maxinterval=every + 10,
        dynamic_ncols=True,
    )  # fmt: skip


def _one_line(error: BaseException) -> str:
    """The text of an exception on one line; an OSError's as ``what: which file``."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {os.fspath(error.filename)!s}" if error.filename is not None else ""
        return f"{error.strerror[0].lower()}{error.strerror[1:]}{where}"
    return " ".join(str(error).split()) or type(error).__name__


def _json_value(value: Any) -> Any:
    """A cell of a frame as JSON takes it."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        if value != value:
            return None
        return value if abs(value) != float("inf") else str(value)
    return value


def _drop_stdout() -> None:
    """Point stdout at nothing, so that the flush at interpreter shutdown does not fail a second time."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
    except (OSError, ValueError):  # a captured stdout has no file descriptor, and nothing to flush
        return
    os.close(null)
