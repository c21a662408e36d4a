"""How each fault of the matrix is brought about on a real server, and how it is seen that it was.

A strike returns at once; what the server makes of it is the matrix's business.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import zmq

from quire.app.keys.key import Key, digest_of
from quire.app.keys.key_file import write_key_file
from tests.e2e.server import KEY, until
from tests.e2e.test_disconnects import reset
from tests.faults.struck import ROOT, Setting, Struck
from tests.faults.test_engine_gone import GIVEN_UP
from tests.faults.test_engine_gone import kill as kill_engine
from tests.faults.test_full_run_dir import fill

PLAIN = Setting()


@dataclass(frozen=True)
class Fault:
    strike: Callable[[Struck], None] | None = None  # None: it holds for the server's whole life
    seen: Callable[[Struck], float] = lambda struck: len(struck.notes)  # a count, which each strike makes larger
    setting: Setting = PLAIN
    for_good: bool = False  # it cannot strike a server twice


def _signal(number: signal.Signals) -> Callable[[Struck], None]:
    return lambda struck: os.kill(struck.engine, number)


def _kill_worker(struck: Struck) -> None:
    os.kill(struck.workers[0], signal.SIGKILL)
    struck.notes.append("killed")


def _order(word: str) -> Callable[[Struck], None]:
    """The engine's next step obeys it."""
    def order(struck: Struck) -> None:
        pending = struck.folder / "order.new"
        pending.write_text(word)
        pending.rename(struck.folder / "order")
    return order


def _slow_step(struck: Struck) -> None:
    assert not struck.count("engine hangs")
    _order("slow")(struck)
    struck.notes.append("ordered")


def _slow_steps_seen(struck: Struck) -> float:
    """Those that were ordered, obeyed, and taken for nothing worse."""
    assert not struck.count("engine hangs") and not struck.count("engine ended")
    return len(struck.notes) - (struck.folder / "order").exists()


def _send_rubbish(struck: Struck) -> None:
    """To the engine, from a process that is none of its workers."""
    address = struck.run_dir / "engine.sock"
    until(address.exists)
    context = zmq.Context()
    with context.socket(zmq.DEALER) as stranger:
        stranger.connect(f"ipc://{address}")
        for frames in ([b""], [b"\xc1"], [b"\x92\xa6submit\x01"], [b"two", b"frames"], [os.urandom(100_000)]):
            stranger.send_multipart(frames)
    context.term()  # once all is sent


def _fill_run_dir(struck: Struck) -> None:
    fill(struck.server, struck.run_dir)
    struck.notes.append("full")


SHM_FULL = "mount -t tmpfs -o size=64k tmpfs /dev/shm && ! head -c 1m /dev/zero 2>/dev/null >/dev/shm/ballast"


def _shm_is_full(struck: Struck) -> float:
    gone = struck.server.process.poll() is not None
    return gone or os.statvfs(f"/proc/{struck.server.process.pid}/root/dev/shm").f_bavail == 0


def _stderr_is_full(struck: Struck) -> float:
    gone = struck.server.process.poll() is not None
    return gone or os.readlink(f"/proc/{struck.server.process.pid}/fd/2") == "/dev/full"


def _nothing_was_said(struck: Struck) -> float:
    return not struck.server.lines


DAY_S = 86400


def _build_clock(folder: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", f"{folder}/clock.so",
                    f"{ROOT}/tests/faults/jumping_clock.c", "-ldl"], check=True)
    (folder / "shift").write_bytes(bytes(8))


def _jump(struck: Struck) -> None:
    """400 days ahead, then 400 back from now, in turns."""
    file = struck.folder / "shift"
    ahead = int.from_bytes(file.read_bytes(), "little", signed=True) <= 0
    with file.open("r+b") as written:  # in place: it is mapped
        written.write((400 * DAY_S if ahead else -400 * DAY_S).to_bytes(8, "little", signed=True))


def _lines_of_other_times(struck: Struck) -> float:
    now = datetime.now(timezone.utc)
    found = 0
    for line in list(struck.server.lines):
        if line.startswith("{"):
            said = datetime.fromisoformat(json.loads(line)["timestamp"].replace("Z", "+00:00"))
            found += abs((now - said).days) > 300
    return found


BROKEN_KEYS = "key file cannot be used; the keys read before stay"


def _break_keys(struck: Struck) -> None:
    """Whole first, so that each strike finds it so."""
    file = struck.folder / "keys.yaml"
    if struck.count(BROKEN_KEYS):
        _write_keys(struck.folder)
        until(lambda: struck.count("key file read") > len(struck.notes))
        struck.notes.append("whole again")
    file.write_text("- name: client\n  sha256: [")


def _write_keys(folder: Path) -> None:
    key = Key(name="client", sha256=digest_of(KEY), created=datetime.now(timezone.utc))
    write_key_file(str(folder / "keys.yaml"), [key])


NUM_LEAVING = 1000


def _leave(struck: Struck) -> None:
    """Clients that go with a reset, half of them in the middle of their bodies."""
    address = urlsplit(struck.server.url)
    body = json.dumps({"prompt": "Once", "max_tokens": 1000, "ignore_eos": True, "stream": True})
    request = (f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
               f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}").encode()
    for number in range(NUM_LEAVING):
        connection = socket.create_connection((address.hostname or "", address.port or 0), timeout=20)
        connection.sendall(request[:-10 if number % 2 else None])
        reset(connection)
    struck.notes.append("left")


NUM_SLOW = 16


def _read_slowly(struck: Struck) -> None:
    """Clients that want long streams and read their first bytes alone."""
    address = urlsplit(struck.server.url)
    body = json.dumps({"prompt": "Once", "max_tokens": 200, "ignore_eos": True, "stream": True, "logprobs": 5})
    request = (f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
               f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}").encode()
    for _ in range(NUM_SLOW):
        client = struck.closing.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(60)
        client.connect((address.hostname, address.port))
        client.sendall(request)
        assert client.recv(15) == b"HTTP/1.1 200 OK"
    struck.notes.append("reading")


ORDERED = Setting(takes_orders=True, flags=("--max-engine-restarts", "100"))
RESTARTED = Setting(flags=("--max-engine-restarts", "100"))


def _ended(struck: Struck) -> float:
    return struck.count("engine ended")


def _hung(struck: Struck) -> float:
    return struck.count("engine hangs")


def _rubbish_dropped(struck: Struck) -> float:
    return struck.count("message dropped")


FAULTS = {
    "SIGKILL of the engine": Fault(_signal(signal.SIGKILL), _ended, RESTARTED),
    "SIGKILL of an HTTP worker": Fault(_kill_worker),
    "SIGSTOP of the engine": Fault(_signal(signal.SIGSTOP), _hung, RESTARTED),
    "a step hangs": Fault(_order("hang"), _hung, ORDERED),
    "a step raises": Fault(_order("raise"), _ended, ORDERED),
    "out of memory in a step": Fault(_order("memory"), _ended, ORDERED),
    "a slow step": Fault(_slow_step, _slow_steps_seen, ORDERED),
    "broken frames to the engine": Fault(_send_rubbish, _rubbish_dropped),
    "full run directory": Fault(_fill_run_dir, setting=Setting(
        mounts="mount -t tmpfs -o mode=700,size=8m tmpfs {folder}/run")),
    "full /dev/shm": Fault(None, _shm_is_full, Setting(mounts=SHM_FULL)),
    "full stderr": Fault(None, _stderr_is_full, Setting(stderr="2>/dev/full")),
    "closed stderr": Fault(None, _nothing_was_said, Setting(stderr="2>&-")),
    "clock jump": Fault(_jump, _lines_of_other_times, Setting(
        prepare=_build_clock,
        environment=(("LD_PRELOAD", "{folder}/clock.so"), ("CLOCK_SHIFT_FILE", "{folder}/shift")))),
    "broken key file": Fault(_break_keys, lambda struck: struck.count(BROKEN_KEYS), Setting(
        flags=("--api-key-file", "{folder}/keys.yaml"), prepare=_write_keys)),
    "dead trace collector": Fault(None, lambda struck: struck.count("traces are not delivered"), Setting(
        flags=("--otlp-traces-endpoint", "http://127.0.0.1:9/v1/traces"),  # the port "discard", where nobody listens
        environment=(("OTEL_BSP_SCHEDULE_DELAY", "50"), ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1")))),
    "1,000 disconnects": Fault(_leave, setting=Setting(flags=("--drain-delay", "10"))),
    "slow readers": Fault(_read_slowly, setting=Setting(flags=("--drain-delay", "10"))),
    "one engine of two gone": Fault(lambda struck: kill_engine(struck.server, 0), lambda struck: struck.count(GIVEN_UP),
                                    Setting(flags=("--data-parallel-size", "2", "--max-engine-restarts", "0")),
                                    for_good=True),
}
