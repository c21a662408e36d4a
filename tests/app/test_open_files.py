"""A server takes as many open files as it may have, and its children as many as it has."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from quire.app.open_files import MOST_FILES, attainable

PROGRAM = """
import resource, subprocess, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))
from quire.app.launcher import Launcher
from quire.app.settings import ServeSettings
try:
    Launcher(ServeSettings(run_dir="/proc/no/such/place")).run()
except Exception:
    pass
subprocess.run([sys.executable, "-c", "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"])
"""


def test_the_launcher_raises_the_soft_limit_for_all_processes() -> None:
    hard = min(2000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(hard=hard)], capture_output=True, text=True)
    assert done.stdout == f"({hard}, {hard})\n", done.stderr


@pytest.mark.parametrize(("hard", "wanted"), [(4096, 4096), (2**30, MOST_FILES), (resource.RLIM_INFINITY, MOST_FILES)])
def test_a_limit_without_sense_is_cut(hard: int, wanted: int) -> None:
    assert attainable(hard) == wanted
