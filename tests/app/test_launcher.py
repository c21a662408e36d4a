from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.launcher import Launcher, _changed
from app.listen import listen, url_of
from app.run_dir import RunDirectory
from app.sd_notify import Systemd
from app.settings import ServeSettings
from engine.config import EngineArgs
from engine.errors import ConfigError
from engine.heartbeat import OVERDUE_S


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


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield receiver


def test_systemd_hears_what_changed_and_no_more(systemd: socket.socket) -> None:
    speaker = Systemd()
    speaker.loading("loading 1%")
    speaker.loading("loading 1%")
    speaker.loading("loading 2%")
    speaker.ready()
    speaker.reloading()
    speaker.reloaded(was_ready=True)
    speaker.reloaded(was_ready=False)
    heard = [systemd.recv(200).decode() for _ in range(6)]
    assert heard[:4] == ["STATUS=loading 1%", "EXTEND_TIMEOUT_USEC=120000000", "STATUS=loading 2%",
                         "READY=1\nSTATUS=serving"]
    assert heard[4].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert heard[5] == "READY=1"
    with pytest.raises(BlockingIOError):
        systemd.recv(200)


@pytest.mark.parametrize(("usec", "pid", "interval"), [
    ("2000000", "", 2.0), ("2000000", str(os.getpid()), 2.0), ("2000000", "1", None), ("0", "", None), ("", "", None)])
def test_the_watchdog_is_fed_only_where_it_is_ours(monkeypatch: pytest.MonkeyPatch, usec: str, pid: str,
                                                   interval: float | None) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert Systemd().watchdog_s == interval


def test_the_watchdog_starves_when_a_silent_engine_is_not_replaced(systemd: socket.socket,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    launcher = Launcher(ServeSettings(engine_stall_timeout=5))
    for silent_s, fed in ((0.0, True), (5 + OVERDUE_S - 1, True), (5 + OVERDUE_S + 1, False)):
        launcher._engine = SimpleNamespace(silent_s=lambda now, silent_s=silent_s: silent_s)  # type: ignore[assignment]
        launcher._watchdog()
        if fed:
            assert systemd.recv(200) == b"WATCHDOG=1"
    with pytest.raises(BlockingIOError):
        systemd.recv(200)


def test_nobody_needs_to_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    Systemd().ready()
    monkeypatch.delenv("NOTIFY_SOCKET")
    Systemd().ready()


def test_what_a_reload_cannot_change_is_named() -> None:
    old = ServeSettings(engine=EngineArgs(max_model_len=512), api_key=["a-secret"])
    new = ServeSettings(engine=EngineArgs(max_model_len=1024), log_level="debug", port=1, api_key=["another"])
    assert _changed(old, new) == ["--port", "--api-key", "--max-model-len"]


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
