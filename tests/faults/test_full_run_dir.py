"""A run directory that fills up under a server, and one that is full before it starts."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.server import Server, until
from tests.faults.test_worker_killed import Streaming


def start_on_tmpfs(run_dir: Path, size: str) -> Server:
    """A server with a small file system of its own for its run directory, in a mount namespace that only it has."""
    mount = f"mount -t tmpfs -o mode=700,size={size} tmpfs {run_dir} && exec \"$@\""
    command = ["unshare", "-m", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("no private mount namespace here")
    return Server(subprocess.Popen(
        [*command, sys.executable, "-m", "quire", "serve", "--port", "0", "--run-dir", str(run_dir)],
        env=os.environ | {"PYTHONUNBUFFERED": "1"}, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL))


def fill(server: Server, run_dir: Path) -> None:
    ballast = os.open(f"/proc/{server.process.pid}/root{run_dir}/ballast", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(ballast, bytes(4096))
    os.close(ballast)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_run_directory_that_fills_up_costs_no_stream_and_a_new_worker_serves_all_the_same(run_dir: Path) -> None:
    server = start_on_tmpfs(run_dir, "8m")
    try:
        server.wait_ready()
        reference = Streaming(server, seed=1, max_tokens=60)
        reference.join(60)
        streams = [Streaming(server, seed=1, max_tokens=60) for _ in range(2)]
        fill(server, run_dir)
        for stream in streams:
            stream.join(60)
            assert (stream.cut, stream.text) == (False, reference.text)
        [worker] = server.pids()["workers"]
        os.kill(worker, signal.SIGKILL)
        until(lambda: server.pids()["workers"] not in ([], [worker]))
        until(lambda: server.events("the run directory has no room for metrics: this worker shows its own alone"))
        until(lambda: server.get("/readyz").status_code == 200)
        after = Streaming(server, seed=1, max_tokens=60)
        after.join(60)
        assert (after.cut, after.text) == (False, reference.text)
        assert server.metric("vllm:generation_tokens_total") == 60, "its own alone"
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    finally:
        server.process.kill()
        server.wait_exit()
    assert not any("Traceback" in line for line in server.lines)


@pytest.mark.slow
def test_a_run_directory_without_room_ends_with_one_line(run_dir: Path) -> None:
    server = start_on_tmpfs(run_dir, "64k")
    assert server.wait_exit() == 2
    [line] = [line for line in server.lines if "--run-dir" in line]
    assert "has room for" in line
    assert not any("Traceback" in line for line in server.lines)


KILLS_WORKERS = """
import os, signal, sys

class Killer:
    def find_spec(self, name, path=None, target=None):
        if name == "quire.app.main":  # which only HTTP workers load
            os.kill(os.getpid(), signal.SIGKILL)

sys.meta_path.insert(0, Killer())
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("fault", "code", "reason"), [
    (KILLS_WORKERS, 70, "HTTP workers ended too often"),
    (KILLS_WORKERS.replace("os.kill(os.getpid(), signal.SIGKILL)", "raise RuntimeError('no worker today')"), 3,
     "the HTTP service could not start"),
])
def test_workers_that_cannot_start_end_the_server_with_a_reason(
        fault: str, code: int, reason: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(fault)
    search = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    server = Server(subprocess.Popen(
        [sys.executable, "-m", "quire", "serve", "--port", "0"], env=os.environ | {"PYTHONPATH": search},
        stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL))
    assert server.wait_exit(120) == code
    assert server.events("giving up")[-1]["reason"] == reason
    if code == 70:
        [told] = server.events("HTTP workers end again and again")
        assert (told["ended"], told["within_s"]) == (12, 60)
