"""Counts of workers in a run directory that is full, in processes of their own: a fault here is a signal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from quire.engine.logs import configure_logging
configure_logging()
from quire.app.telemetry import shared_values
shared_values.use()
from quire.app.telemetry.metrics import Metrics
from quire.engine.messages import KeyLimits
from quire.app.telemetry.record import RequestRecord
metrics = Metrics("m")
if sys.argv[1] == "grown":  # the disk fills only now
    ballast = os.open(os.environ["PROMETHEUS_MULTIPROC_DIR"] + "/ballast", os.O_WRONLY | os.O_CREAT)
    try:
        while True: os.write(ballast, bytes(4096))
    except OSError: pass
    for number in range(800):  # some 100 KiB of counters
        metrics.request_ended(RequestRecord("id", "POST", "/", "a", "", 1.0, ended=2.0, status=200,
                                            key=KeyLimits(f"key-{number}")), "/")
metrics.spans_dropped(7)
text = metrics.expose([]).decode()
assert "quire:spans_dropped_total 7.0" in text, text
if sys.argv[1] == "grown": assert 'quire:key_requests_total{key="key-799"} 1.0' in text
print(shared_values.alone)
"""


@pytest.fixture
def tiny_tmpfs(tmp_path: Path) -> Callable[[str], list[str]]:
    """A command that runs what follows with 512 KiB of tmpfs at tmp_path / "metrics", after a `word` to the shell."""
    (tmp_path / "metrics").mkdir()

    def command(word: str) -> list[str]:
        inside = f"mount -t tmpfs -o size=512k tmpfs {tmp_path}/metrics && {{ {word}; exec \"$@\"; }}"
        return ["unshare", "-m", "sh", "-c", inside, "sh"]

    if shutil.which("unshare") is None or subprocess.run([*command("true"), "true"], capture_output=True).returncode:
        pytest.skip("no private mount namespace here")
    return command


def run(command: list[str], directory: Path, how: str) -> str:
    done = subprocess.run([*command, sys.executable, "-c", PROGRAM, how], text=True, capture_output=True,
                          env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(directory / "metrics")})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("has no room for metrics") == (done.stdout == "True\n")
    return done.stdout


def test_a_worker_that_starts_in_a_full_directory_counts_in_its_memory_and_says_so(
        tiny_tmpfs: Callable[[str], list[str]], tmp_path: Path) -> None:
    fill = f"cat /dev/zero >{tmp_path}/metrics/ballast 2>/dev/null"
    assert run(tiny_tmpfs(fill), tmp_path, "full") == "True\n"


def test_counters_that_outgrow_a_full_directory_go_on_in_memory(
        tiny_tmpfs: Callable[[str], list[str]], tmp_path: Path) -> None:
    assert run(tiny_tmpfs("true"), tmp_path, "grown") == "True\n"


def test_where_there_is_room_nothing_changes(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    assert run([], tmp_path, "roomy") == "False\n"
    for file in (tmp_path / "metrics").iterdir():
        assert file.stat().st_blocks * 512 >= file.stat().st_size > 0, "no holes"
