"""Exit codes, and what goes to stdout and to stderr."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from figures.command import emit, progress, run
from figures.tables import TableError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from figures.command import run
def main(task: str = "digits", quiet: bool = False) -> None:
    "Do it."
    {body}
run(main, prog="python -m it")
"""


def script(body: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT.format(body=body), *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, stderr=subprocess.PIPE, timeout=60, **options)


def leave(main, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["it", *arguments])
    with pytest.raises(SystemExit) as caught:
        run(main, prog="python -m it")
    return caught.value.code


def raising(error: BaseException):
    def main(task: str = "digits", quiet: bool = False) -> None:
        """Fail."""
        raise error

    return main


def test_done_is_0_and_a_returned_int_is_the_code(monkeypatch: pytest.MonkeyPatch):
    assert leave(lambda: None, monkeypatch) == 0
    assert leave(lambda: 1, monkeypatch) == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (TableError("expected a\n   table"), "error: expected a table\n"),
        (FileNotFoundError(2, "No such file or directory", "runs/x"), "error: no such file or directory: runs/x\n"),
        (PermissionError(13, "Permission denied", "out"), "error: permission denied: out\n"),
        (OSError(28, "No space left on device"), "error: no space left on device\n"),
        (OSError("no connection"), "error: no connection\n"),
    ],
)
def test_wrong_input_and_refusing_machine_are_one_line_and_2(error, line, monkeypatch, capsys):
    assert leave(raising(error), monkeypatch) == 2
    assert capsys.readouterr() == ("", line)


def test_a_warning_is_one_line_and_no_place_in_the_code():
    done = script("import warnings; warnings.warn('two of nine\\n   losses are NaN', RuntimeWarning)")
    assert (done.returncode, done.stderr) == (0, "warning: two of nine losses are NaN\n")


def test_exit_code_of_an_exception_is_kept(monkeypatch: pytest.MonkeyPatch, capsys):
    class FailedError(ValueError):
        exit_code = 1

    assert leave(raising(FailedError("three of nine runs failed")), monkeypatch) == 1
    assert capsys.readouterr().err == "error: three of nine runs failed\n"


def test_ctrl_c_names_the_command_that_goes_on(monkeypatch: pytest.MonkeyPatch, capsys):
    assert leave(raising(KeyboardInterrupt()), monkeypatch, "--task", "folder:my data", "--quiet") == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip() == "interrupted; this goes on: python -m it --task 'folder:my data' --quiet"


def test_a_defect_passes_with_its_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["it"])
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()), prog="it")
    done = script("1 / 0")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("arguments", [("--taks", "x"), ("--quiet", "maybe"), ("stray",)])
def test_unknown_flags_and_values_are_2(arguments, monkeypatch: pytest.MonkeyPatch, capsys):
    assert leave(raising(AssertionError("not reached")), monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    if arguments[0] == "--taks":
        assert "--task" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_behind_stdout_is_2():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = script("print(task)", stdout=full)
    assert (done.returncode, done.stderr) == (2, "error: no space left on device\n")


def test_a_closed_pipe_is_silent():
    command = [sys.executable, "-c", SCRIPT.format(body="[print('x' * 1000) for _ in range(1000)]")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_help_into_a_closed_pipe_is_silent():
    out, pipe = os.pipe()
    os.close(out)
    try:
        done = script("pass", "--help", stdout=pipe)
    finally:
        os.close(pipe)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_comes_within_a_second():
    """Of processor time: the wall clock of a loaded machine says nothing."""

    def seconds() -> float:
        before = os.times()
        command = [sys.executable, "-m", "figures", "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        after = os.times()
        assert "FOLDER" in done.stdout.upper()
        return after.children_user - before.children_user + after.children_system - before.children_system

    assert min(seconds() for _ in range(3)) < 1.0


FRAME = pd.DataFrame(
    {
        "label": ["a, b", "c"],
        "loss_nats": [0.1 + 0.2, float("nan")],
        "rise_nats": [float("inf"), 1e-9],
        "n": [1, 2],
        "ok": [True, False],
    }
)


def test_a_pipe_gets_csv_with_every_digit(capsys):
    emit(FRAME)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == {"label": "a, b", "loss_nats": "0.30000000000000004", "rise_nats": "inf", "n": "1", "ok": "True"}


def test_a_terminal_gets_aligned_columns(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    emit(FRAME)
    lines = terminal.getvalue().splitlines()
    assert len(lines) == 3
    assert len({len(line.rstrip()) for line in lines}) == 1
    assert "0.3 " in lines[1]


def test_json_has_records_and_no_bare_nan(capsys):
    emit(FRAME, json=True)
    records = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert records[0] == {"label": "a, b", "loss_nats": 0.1 + 0.2, "rise_nats": "inf", "n": 1, "ok": True}
    assert records[1]["loss_nats"] is None


def test_progress_writes_to_stderr_or_not_at_all(capsys):
    assert list(progress(range(3), "points")) == [0, 1, 2]
    with progress(2, "runs") as bar:
        bar.update(2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "points" in err
    assert "2/2" in err
    list(progress([1], "points", quiet=True))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [["--nope"], ["--quiet", "3"], ["--task"]])
def test_what_cannot_be_parsed_is_one_line(monkeypatch, capsys, arguments):
    assert leave(raising(AssertionError()), monkeypatch, *arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert "│" not in said.err


@pytest.mark.parametrize("error", [MemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9")])
def test_too_little_memory_is_one_line(monkeypatch, capsys, error):
    assert leave(raising(error), monkeypatch) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_persons_own_train_py_does_not_stand_for_the_package(monkeypatch, tmp_path):
    """``python -m`` puts the current folder first on the path; one without such a file stays there."""
    from figures.command import _unshadowed

    monkeypatch.setattr(sys, "path", [str(tmp_path), str(ROOT)])
    _unshadowed()
    assert sys.path == [str(tmp_path), str(ROOT)]
    (tmp_path / "train.py").write_text("raise SystemExit('not this one')")
    _unshadowed()
    assert sys.path == [str(ROOT)]
    _unshadowed()
    assert sys.path == [str(ROOT)]
