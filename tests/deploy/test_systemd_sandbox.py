"""The server with what the systemd unit leaves it: no rights, no other files, the unit's system calls; a fake systemd.

bubblewrap stands in for systemd, which would have to be process 1: the mounts follow the unit's directories and
ProtectSystem=strict, the account is an unprivileged one in its own user namespace, and libseccomp compiles the filter.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.systemd_unit import ROOT, UNIT, Unit
from tests.e2e.server import KEY, Server, until

MODEL = "smollm2-135m-instruct"


class Systemd:
    """Listens where systemd would, and keeps what it is told."""

    def __init__(self, path: Path) -> None:
        self.told: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while message := self._socket.recv(4096):
                self.told += message.decode().splitlines()

    def close(self) -> None:
        self._socket.close()


class Sandbox:
    def __init__(self, folder: Path) -> None:
        self.unit = Unit(UNIT)
        self._folder = folder
        self.run_dir, self.cache, self.logs = (self._made(name) for name in ("run", "cache", "logs"))
        self._state, self._credentials, notify = (self._made(name) for name in ("state", "credentials", "notify"))
        self.run_dir.chmod(int(self.unit.one("RuntimeDirectoryMode"), 8))
        (self._credentials / "VLLM_API_KEY").write_text(KEY + "\n")
        (self._credentials / "VLLM_API_KEY").chmod(0o400)
        self.systemd = Systemd(notify / "socket")
        self._notify = notify
        self._filter = folder / "filter"
        self.unit.filter_program(self._filter)

    def _made(self, name: str) -> Path:
        (self._folder / name).mkdir()
        return self._folder / name

    def _mounts(self) -> list[str]:
        name = self.unit.one("RuntimeDirectory")
        writable = {f"/run/{name}": self.run_dir, f"/var/lib/{self.unit.one('StateDirectory')}": self._state,
                    f"/var/cache/{self.unit.one('CacheDirectory')}": self.cache,
                    f"/var/log/{self.unit.one('LogsDirectory')}": self.logs, "/run/notify": self._notify}
        mounts = ["--ro-bind", "/", "/", "--dev", "/dev"]
        for hidden in ("/tmp", "/run", "/home", "/root", "/var/lib", "/var/cache", "/var/log"):
            mounts += ["--tmpfs", hidden]
        for place in map(os.path.realpath, (sys.base_prefix, sys.prefix, ROOT)):  # a checkout may well lie in a home
            mounts += ["--ro-bind", place, place]
        for place, folder in writable.items():
            mounts += ["--bind", str(folder), place]
        mounts += ["--ro-bind", str(self._credentials), self.credentials]
        for hidden in ("/run", "/home", "/root", "/var/lib", "/var/cache", "/var/log"):
            mounts += ["--remount-ro", hidden]
        return mounts

    @property
    def credentials(self) -> str:
        return "/run/credentials/quire.service"

    def popen(self, *command: str) -> subprocess.Popen[str]:
        environment = self.unit.environment | {
            "PATH": "/usr/bin:/bin", "NOTIFY_SOCKET": "/run/notify/socket", "CREDENTIALS_DIRECTORY": self.credentials,
            "RUNTIME_DIRECTORY": f"/run/{self.unit.one('RuntimeDirectory')}", "HF_HUB_OFFLINE": "1",
            "QUIRE_HOST": "127.0.0.1", "QUIRE_PORT": "0", "QUIRE_CPU_THREADS": "1", "QUIRE_MAX_MODEL_LEN": "1024",
            "PYTHONPATH": str(ROOT)}
        with self._filter.open("rb") as program:
            return subprocess.Popen(
                ["bwrap", *self._mounts(), "--unshare-user", "--unshare-ipc", "--uid", "10001", "--gid", "10001",
                 "--cap-drop", "ALL", "--new-session", "--die-with-parent",
                 "--chdir", self.unit.one("WorkingDirectory"), "--seccomp", str(program.fileno()), "--", *command],
                env=environment, pass_fds=[program.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True)


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    for program in ("bwrap", "systemd-analyze"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if ctypes.util.find_library("seccomp") is None:
        pytest.skip("libseccomp is not installed")
    if subprocess.run(["bwrap", "--unshare-user", "--ro-bind", "/", "/", "true"], capture_output=True).returncode:
        pytest.skip("bubblewrap may not make user namespaces here")
    found = Sandbox(tmp_path)
    yield found
    found.systemd.close()


def test_the_stand_in_takes_away_what_the_unit_takes_away(sandbox: Sandbox) -> None:
    code = """if True:
        import ctypes, errno, json, os
        def fails(call, *args):
            try: call(*args)
            except OSError as error: return errno.errorcode[error.errno]
        libc = ctypes.CDLL(None, use_errno=True)
        status = open('/proc/self/status').read()
        print(json.dumps({
            'uid': os.getuid(), 'capabilities': status.split('CapEff:')[1].split()[0],
            'filter': status.split('Seccomp:')[1].split()[0],
            'usr': fails(open, '/usr/x', 'w'), 'etc': fails(open, '/etc/x', 'w'), 'var': fails(open, '/var/lib/x', 'w'),
            'chown': fails(os.chown, '/tmp', 0, 0), 'tmp': fails(open, '/tmp/of-the-test', 'w'),
            'pidfd': fails(os.pidfd_open, os.getpid()), 'shm': fails(open, '/dev/shm/x', 'w'),
            'mount': libc.mount(b'x', b'/tmp', b'tmpfs', 0, None) and errno.errorcode[ctypes.get_errno()]}))"""
    output, errors = sandbox.popen(sys.executable, "-c", code).communicate(timeout=30)
    assert output, errors
    assert json.loads(output) == {
        "uid": 10001, "capabilities": "0" * 16, "filter": "2", "usr": "EROFS", "etc": "EROFS", "var": "EROFS",
        "chown": "EPERM", "tmp": None, "pidfd": None, "shm": None, "mount": "EPERM"}


@pytest.mark.slow
def test_the_server_answers_and_drains_and_tells_systemd(sandbox: Sandbox) -> None:
    server = Server(sandbox.popen(sys.executable, "-m", "quire", "serve"))
    try:
        server.wait_ready()
        until(lambda: "READY=1" in sandbox.systemd.told, 5)
        assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in sandbox.systemd.told)
        reply = server.client(timeout=60).chat.completions.create(
            model=MODEL, temperature=0, max_tokens=16,
            messages=[{"role": "user", "content": "What is the capital of France?"}])
        assert "Paris" in (reply.choices[0].message.content or "")
        assert (sandbox.logs / "quire-audit.jsonl").stat().st_mode & 0o777 == 0o600
        assert (sandbox.run_dir / "probe.sock").exists()
        os.kill(launcher_of(server), signal.SIGTERM)
        assert server.wait_exit() == 0
        assert "STOPPING=1" in sandbox.systemd.told
        assert not any("Operation not permitted" in line for line in server.lines)
        assert [path.name for path in sandbox.run_dir.iterdir()] == []
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.wait_exit()
        if server.process.stdout is not None:
            server.process.stdout.close()


def launcher_of(server: Server) -> int:
    """bubblewrap's child: what systemd would signal."""
    (child,) = (int(pid) for pid in Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
                .read_text().split())
    return child
