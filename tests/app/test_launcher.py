from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app.launcher import RestartPolicy
from app.listen import listen, url_of
from app.run_dir import RunDirectory
from app.sd_notify import sd_notify
from app.settings import ServeSettings
from engine.errors import ConfigError


def test_restart_delays_grow_and_then_end() -> None:
    policy = RestartPolicy(max_failures=4, window_s=100, first_delay_s=1, max_delay_s=3)
    assert [policy.failed(t) for t in (0, 1, 2, 3)] == [1, 2, 3, None]


def test_failures_long_ago_are_forgiven() -> None:
    policy = RestartPolicy(max_failures=2, window_s=10, first_delay_s=1)
    assert [policy.failed(t) for t in (0, 11, 22)] == [1, 1, 1]


def test_a_taken_port_is_a_configuration_error_at_once() -> None:
    with listen(ServeSettings(port=0)) as first:
        port = first.getsockname()[1]
        assert url_of(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConfigError, match="--port: cannot listen"):
            listen(ServeSettings(port=port))


def test_a_unix_socket_left_by_a_dead_server_is_taken_over_a_file_is_not(tmp_path: Path) -> None:
    settings = ServeSettings(uds=str(tmp_path / "q.sock"))
    listen(settings).close()
    listen(settings).close()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConfigError):
        listen(ServeSettings(uds=str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "precious"


def test_two_servers_cannot_share_a_run_directory(tmp_path: Path) -> None:
    path = str(tmp_path / "run")
    with RunDirectory(path) as first:
        with pytest.raises(ConfigError, match="--run-dir"), RunDirectory(path):
            pass
        assert first.path == path
    with RunDirectory(path):
        pass


def test_a_run_directory_forgets_the_server_before(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "counter_1.db").write_text("old")
    (tmp_path / "drain").write_text("0")
    with RunDirectory(str(tmp_path)) as run_dir:
        assert os.listdir(run_dir.path) == ["metrics"]
        assert not os.listdir(f"{run_dir.path}/metrics")


def test_a_private_run_directory_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    with RunDirectory(None) as run_dir:
        path = run_dir.path
        assert os.stat(path).st_mode & 0o077 == 0
    assert not os.path.exists(path)


def test_systemd_hears_what_it_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        sd_notify("READY=1", "STATUS=ready")
        assert receiver.recv(100) == b"READY=1\nSTATUS=ready"
    sd_notify("nobody listens")


WORKER_IMPORTS = """
import sys
import app.main, app.worker
heavy = {"torch", "transformers", "triton", "kernels"} & set(sys.modules)
assert not heavy, heavy
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


def test_a_worker_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", WORKER_IMPORTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100 * 1024, "KiB resident before a tokenizer is loaded"


def test_the_command_line_imports_nothing_heavy() -> None:
    code = ("import sys, app.cli, app.launcher\n"
            "assert not {'torch', 'transformers', 'starlette', 'tokenizers', 'gunicorn'} & set(sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
