"""A command that is killed takes its workers along, and what it had sent them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent

SCRIPT = """
import time
from landscape_nets import Mlp, data, seeded
from landscape import Objective, Space, draw, grid, line

class Slow(Mlp):
    def forward(self, x):
        time.sleep(0.1)
        return super().forward(x)

if __name__ == "__main__":
    model = seeded(Slow)
    objective, space = Objective(model, *data(Mlp)), Space(model, ["up.weight"])
    measured = lambda done, total: print(done, flush=True)
    line(objective, space, draw(space, 0), grid(1.0, 9999), workers="2", on_point=measured)
"""


def alive(session: int) -> set[int]:
    """The processes of a session that have not ended."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(its_session) == session and state not in "ZX":
            found.add(int(path.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
@pytest.mark.parametrize("signum", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_nothing_is_left_of_a_command_that_was_killed(tmp_path, request, signum):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # Not below tmp_path: the path of a socket in it may have about a hundred characters.
    folder = Path(tempfile.mkdtemp())
    request.addfinalizer(lambda: shutil.rmtree(folder, ignore_errors=True))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "TMPDIR": str(folder)}
    with subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "nothing was measured"
            assert len(alive(process.pid)) > 3, "itself, two workers and their server"
            assert list(folder.glob("*/probe"))
            process.send_signal(signum)
            process.wait()
            until = time.monotonic() + 30
            while alive(process.pid) and time.monotonic() < until:
                time.sleep(0.1)
            assert not alive(process.pid)
            assert not list(folder.glob("*/probe"))
        finally:
            for pid in alive(process.pid):
                os.kill(pid, signal.SIGKILL)
