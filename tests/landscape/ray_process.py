"""A program on a ray cluster, in a process of its own: tests have no sockets, which a cluster on loopback needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def ran(program: str) -> subprocess.CompletedProcess[str]:
    """The finished process, what it printed and said; the networks of the tests can be imported in it."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "GRPC_ENABLE_FORK_SUPPORT": "false",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
