from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from quire.app import engine_child, gone_file
from quire.app.engine_slot import EngineSlot
from quire.app.launcher import EXIT_OK, Launcher, _changed
from quire.app.listen import listen, url_of
from quire.app.reload import request_reload
from quire.app.run_dir import run_directory
from quire.app.sd_notify import Systemd
from quire.app.settings import ServeSettings
from quire.app.worker_settings import for_workers
from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError
from quire.engine.exit_codes import EXIT_BROKEN, EXIT_CONFIG, EXIT_LOAD
from quire.engine.heartbeat import OVERDUE_S
from tests.e2e.server import until


def test_a_taken_port_is_a_configuration_error_at_once() -> None:
    with listen(ServeSettings(port=0)) as first:
        port = first.getsockname()[1]
        assert url_of(first, "http") == f"http://127.0.0.1:{port}"
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
    with run_directory(path) as first:
        with pytest.raises(ConfigError, match="--run-dir"), run_directory(path):
            pass
        assert first == path
    with run_directory(path):
        pass


def test_a_run_directory_forgets_the_server_before(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "counter_1.db").write_text("old")
    for name in ("drain", "opened", "gone", "engine.sock", "engine-1.sock"):
        (tmp_path / name).write_text("0")
    tmp_path.chmod(0o700)
    with run_directory(str(tmp_path)) as run_dir:
        assert os.listdir(run_dir) == ["metrics"]
        assert not os.listdir(f"{run_dir}/metrics")


def test_a_run_directory_too_long_for_a_socket_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 90)
    with pytest.raises(ConfigError, match="longer than 80 characters"), run_directory(str(path)):
        pass
    assert not path.exists()


def test_a_private_run_directory_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    with run_directory(None) as run_dir:
        path = run_dir
        assert os.stat(path).st_mode & 0o077 == 0
    assert not os.path.exists(path)


@pytest.mark.parametrize("mode", [0o750, 0o770, 0o701, 0o707, 0o1777])
def test_a_run_directory_open_to_others_is_refused_unless_it_is_said_that_there_are_none(
        mode: int, tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(ConfigError, match="is open to others"), run_directory(str(path)):
        pass
    assert not os.listdir(path), "untouched"
    with run_directory(str(path), shared=True):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_a_run_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    os.chown(path, 12345, 0)
    with pytest.raises(ConfigError, match="belongs to user 12345"), run_directory(str(path)):
        pass


def test_a_run_directory_that_is_made_is_its_users_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with run_directory(str(tmp_path / "run")) as path:
            assert os.stat(path).st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


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
    ("2000000", "", 2.0), ("2000000", "ours", 2.0), ("2000000", "1", None), ("0", "", None), ("", "", None)])
def test_the_watchdog_is_fed_only_where_it_is_ours(monkeypatch: pytest.MonkeyPatch, usec: str, pid: str,
                                                   interval: float | None) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid.replace("ours", str(os.getpid())))
    assert Systemd().watchdog_s == interval


def test_the_watchdog_starves_when_a_silent_engine_is_not_replaced(systemd: socket.socket,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    launcher = Launcher(ServeSettings(engine_stall_timeout=5))
    for silent_s, fed in ((0.0, True), (5 + OVERDUE_S - 1, True), (5 + OVERDUE_S + 1, False)):
        engines: Any = [SimpleNamespace(child=SimpleNamespace(silent_s=lambda now, silent_s=each: silent_s), gone=gone)
                        for each, gone in ((0.0, False), (silent_s, False), (1e6, True))]
        launcher._slots = engines
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


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EngineSlot]]:
    """Two, whose engines are small programs that show their arguments and wait for their end."""
    popen = subprocess.Popen

    def instead(command: list[str], **options: Any) -> Any:
        return popen([sys.executable, "-c", "import time; time.sleep(60)", *command[3:]], **options)

    monkeypatch.setattr(engine_child.subprocess, "Popen", instead)
    settings = ServeSettings(engine=EngineArgs(data_parallel_size=2), max_engine_restarts=2)
    slots = [EngineSlot(settings, f"ipc:///{place}", "", {"OWN": str(place)}, place) for place in range(2)]
    yield slots
    engine_child.stop_all([slot.child for slot in slots if slot.child is not None], 0)
    for slot in slots:
        if slot.child is not None:
            slot.child.close()


def start_and_kill(slot: EngineSlot, number: signal.Signals) -> float | None:
    read_end, write_end = os.pipe()
    slot.start(dict(os.environ), read_end)
    os.close(read_end)
    os.close(write_end)
    assert slot.child is not None
    os.kill(slot.child.pid, number)
    ended: list[Any] = []
    until(lambda: ended.append(slot.take_ended()) or ended[-1])
    assert slot.child is None
    return slot.restart_delay_s(*ended[-1])


def test_each_engine_has_its_own_account_of_failures(slots: list[EngineSlot]) -> None:
    assert [start_and_kill(slots[0], signal.SIGKILL) for _ in range(3)] == [0.0, 0.5, None]
    assert slots[0].policy_facts["engine"] == 0
    assert start_and_kill(slots[1], signal.SIGKILL) == 0.0


def test_an_engine_learns_how_the_one_in_its_own_place_ended(slots: list[EngineSlot]) -> None:
    start_and_kill(slots[0], signal.SIGKILL)
    for slot, killed in zip(slots, (True, False)):
        read_end, write_end = os.pipe()
        slot.start(dict(os.environ), read_end)
        os.close(read_end)
        os.close(write_end)
        assert slot.child is not None
        proc = Path(f"/proc/{slot.child.pid}")
        until(lambda proc=proc: b"--address" in (proc / "cmdline").read_bytes())
        assert (b"--after-kill" in (proc / "cmdline").read_bytes()) is killed
        assert f"OWN={slot.facts['engine']}".encode() in (proc / "environ").read_bytes().split(b"\0")


def no_process(*_: object, **__: object) -> None:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def test_a_process_that_cannot_be_had_leaves_no_pipe_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_child.subprocess, "Popen", no_process)
    slot = EngineSlot(ServeSettings(), "ipc:///0", "", {}, 0)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="Cannot allocate memory"):
        slot.start({}, 0)
    assert os.listdir("/proc/self/fd") == before
    assert slot.child is None


def test_a_server_that_cannot_have_a_process_now_tries_again_and_gives_up_in_the_end(
        launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_child.subprocess, "Popen", no_process)
    monkeypatch.setattr(launcher, "_environment", dict)
    launcher._lifeline = 0
    launcher._slots = [EngineSlot(ServeSettings(max_engine_restarts=2), "ipc:///0", "", {}, 0)]
    launcher._was_ready = True
    for _ in range(2):
        launcher._start_engine(launcher._slots[0])
        [again] = launcher._due
        assert launcher._exit_code is None
        del launcher._due[again]
    launcher._start_engine(launcher._slots[0])
    assert (launcher._exit_code, launcher._due) == (EXIT_BROKEN, {})
    launcher._exit_code, launcher._was_ready = None, False
    launcher._start_engine(launcher._slots[0])
    assert launcher._exit_code == EXIT_LOAD


@pytest.fixture
def opened(tmp_path: Path, slots: list[EngineSlot]) -> Launcher:
    """A launcher of two engines that were both ready."""
    launcher = Launcher(ServeSettings(engine=EngineArgs(data_parallel_size=2)))
    launcher._shared = for_workers(ServeSettings(), str(tmp_path), 0)
    launcher._slots, launcher._was_ready = slots, True
    return launcher


def test_the_last_engine_is_given_up_with_the_server_and_one_before_it_without(opened: Launcher,
                                                                              slots: list[EngineSlot]) -> None:
    for slot, killed, left in ((slots[1], True, [slots[0]]), (slots[0], False, [])):
        slot.last_was_killed = killed
        opened._start_again(slot, None, EXIT_BROKEN)
        assert opened._left == left
        assert opened._exit_code == (None if left else EXIT_BROKEN)
        assert opened._due.pop(opened._look_whether_ready, None) or not left
        assert gone_file.read(opened._shared.gone_file) == {1: True}


def test_one_that_cannot_be_started_any_more_or_cannot_even_be_killed_is_given_up_alone(
        opened: Launcher, slots: list[EngineSlot]) -> None:
    child: Any = SimpleNamespace(serving_since=1.0, hung=False, immortal=True, end_if_hung=lambda now: now,
                                 silent_s=lambda now: 1e6, pid=0)
    opened._engine_ended(slots[0], child, EXIT_CONFIG)
    assert (slots[0].gone, opened._exit_code) == (True, None)
    slots[0].gone, slots[0].child = False, child
    opened._end_if_hung()
    assert (slots[0].gone, opened._exit_code) == (True, None)
    slots[0].child = None


def test_before_all_were_ready_the_loss_of_one_is_the_end(opened: Launcher, slots: list[EngineSlot]) -> None:
    opened._was_ready = False
    opened._engine_ended(slots[0], SimpleNamespace(serving_since=None, hung=False), EXIT_LOAD)  # type: ignore[arg-type]
    assert opened._exit_code == EXIT_LOAD


def test_workers_are_told_again_where_the_disk_was_full(opened: Launcher, slots: list[EngineSlot],
                                                        tmp_path: Path) -> None:
    (tmp_path / "gone.new").mkdir()
    opened._start_again(slots[1], None, EXIT_BROKEN)
    assert opened._exit_code is None
    (tmp_path / "gone.new").rmdir()
    assert opened._tell_workers_who_is_gone in opened._due
    opened._tell_workers_who_is_gone()
    assert gone_file.read(opened._shared.gone_file) == {1: False}


HTTP = """
import signal, sys, time
def leave(*_):
    print(open(sys.argv[1]).read())
    sys.exit()
signal.signal(signal.SIGTERM, leave)
print("up", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("exit_code", "told"), [(EXIT_BROKEN, '{"0":false,"1":false}'), (EXIT_OK, "")])
def test_workers_that_are_told_of_the_end_may_tell_their_clients_before_it(tmp_path: Path, exit_code: int,
                                                                          told: str) -> None:
    launcher = Launcher(ServeSettings())
    launcher._shared = for_workers(ServeSettings(), str(tmp_path), 0)
    launcher._slots = [EngineSlot(ServeSettings(), "", "", {}, place) for place in range(2)]
    launcher._was_ready, launcher._socket, launcher._admin_socket = True, socket.socket(), None
    launcher._http = subprocess.Popen([sys.executable, "-c", HTTP, str(tmp_path / "gone")], stdout=subprocess.PIPE,
                                      start_new_session=True)
    with launcher._http as http:
        assert http.stdout is not None
        assert http.stdout.readline() == b"up\n"
        launcher._exit_code = exit_code
        launcher._stop_all()
        launcher._socket.close()
        assert http.stdout.read().decode().strip() == told


def test_too_few_gpus_for_the_engines_are_a_configuration_error_at_once() -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run([sys.executable, "-m", "quire", "serve", "--port", "0", "--data-parallel-size", "2"],
                          env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--data-parallel-size: 2 engines of 1 GPU(s) each need 2 GPUs" in done.stderr


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    """Its run directory takes no file."""
    launcher = Launcher(ServeSettings(shutdown_timeout=1))
    launcher._shared = for_workers(ServeSettings(), str(tmp_path / "gone"), 0)
    return launcher


def test_a_full_run_directory_refuses_a_reload_and_nothing_else(launcher: Launcher) -> None:
    with structlog.testing.capture_logs() as events:
        launcher._reload()
    assert [event["event"] for event in events] == ["reload refused, everything stays"]
    assert launcher._exit_code is None


def test_a_full_run_directory_does_not_keep_a_server_from_draining(launcher: Launcher) -> None:
    launcher._asked_to_stop("SIGTERM")
    assert launcher._close_port in launcher._due and launcher._end_drain in launcher._due
    assert launcher._exit_code is None


def test_a_reload_that_cannot_be_asked_for_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "reload").mkdir()  # which no file can replace
    with pytest.raises(OSError):
        request_reload(str(tmp_path / "reload"), "info")
    assert os.listdir(tmp_path) == ["reload"]


def test_a_hub_that_cannot_be_reached_is_worth_another_try(systemd: socket.socket, tmp_path: Path) -> None:
    """systemd does not restart after exit code 2."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    done = subprocess.run([sys.executable, "-m", "quire", "serve", "--port", "0", "--model", "some/one"],
                          env=environment | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path)},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "could not be fetched" in done.stderr
    assert systemd.recv(200).startswith(b"STATUS=")
    assert systemd.recv(200).startswith(b"EXTEND_TIMEOUT_USEC=")


WORKER_IMPORTS = """
import sys
import quire.app.main, app.worker
heavy = {"torch", "transformers", "triton", "kernels"} & set(sys.modules)
assert not heavy, heavy
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


def test_a_worker_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", WORKER_IMPORTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100 * 1024, "KiB resident before a tokenizer is loaded"


def test_the_command_line_imports_nothing_heavy() -> None:
    code = ("import sys, quire.app.cli, quire.app.launcher\n"
            "assert not {'torch', 'transformers', 'starlette', 'tokenizers', 'gunicorn'} & set(sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("served", [True, False])
def test_an_engine_that_dies_in_a_drain_is_replaced_if_it_served_though_nobody_had_looked(
        served: bool, launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine(SimpleNamespace):
        def take_beats(self, now: float) -> bool:  # which the pipe holds, and nobody has read yet
            self.serving_since = now if served else None
            return False

    engine: Any = Engine(serving_since=None, hung=False, pid=0)
    slot = EngineSlot(ServeSettings(), "ipc:///nowhere", "", {}, 0)
    slot.child = engine
    launcher._slots = [slot]
    launcher._asked_to_stop("SIGTERM")
    slot.child = None
    launcher._engine_ended(slot, engine, -signal.SIGKILL)
    assert launcher._exit_code == (None if served else 0)
    assert len(launcher._due) == (3 if served else 2), "the port's close, the drain's end, and the next engine's start"
