"""An engine that stands still is found out by its silence, replaced, and in the end given up; a slow machine is not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.server import KEY, Server, alive, serving, until
from tests.e2e.test_lifecycle import Stream


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("--engine-stall-timeout", "3", "--max-engine-restarts", "2") as server:
        yield server


def engine_of(server: Server) -> int:
    return server.pids()["engine"][0]


@pytest.mark.slow
def test_a_stopped_engine_is_replaced_and_streams_go_on(server: Server) -> None:
    undisturbed = Stream(server, 60).result()
    streams = [Stream(server, 60) for _ in range(3)]
    assert all(stream.begun.wait(60) for stream in streams)
    stopped = engine_of(server)
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: not alive(stopped), 30)
    assert httpx.get(f"{server.url}/livez").status_code == 200
    assert [stream.result() for stream in streams] == [undisturbed] * 3
    assert server.events("engine hangs")
    assert server.events("engine ended")[0]["cause"] == "watchdog"
    assert server.events("engine ended")[0]["restart_in_s"] == 0
    until(lambda: len(server.events("ready")) == 2, 60)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_step_that_is_merely_slow_is_no_hang() -> None:
    """A prompt in one piece, on one thread of a CPU: the step takes far longer than the timeout, no layer does."""
    with serving("--engine-stall-timeout", "1", "--max-num-batched-tokens", "8192", "--max-model-len", "3072",
                 "--kv-cache-memory-bytes", "300M", "--no-enable-prefix-caching") as server:
        began = time.monotonic()
        reply = httpx.post(f"{server.url}/v1/completions", headers={"authorization": f"Bearer {KEY}"}, timeout=250,
                           json={"prompt": [7] * 2500, "max_tokens": 1})
        took_s = time.monotonic() - began
        assert reply.status_code == 200, reply.text
        assert took_s > 6, "as long as it took for a step of so many tokens to be ended as a hang"
        assert not server.events("engine hangs")
        assert httpx.get(f"{server.url}/livez").status_code == 200


@pytest.mark.slow
def test_a_pause_of_the_whole_machine_is_nobodys_fault(server: Server) -> None:
    pids = [server.process.pid, engine_of(server)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(5)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    time.sleep(3)
    assert engine_of(server) == pids[1]
    assert len(server.events("engine hangs")) == 1


def test_sigabrt_leaves_every_threads_stack_in_the_log(server: Server) -> None:
    """What a hung engine gets first."""
    ended_before = len(server.events("engine ended"))
    os.kill(engine_of(server), signal.SIGABRT)
    until(lambda: len(server.events("engine ended")) == ended_before + 1)
    assert server.events("engine ended")[-1]["cause"] == "crash"
    text = "".join(server.lines)
    assert "Fatal Python error: Aborted" in text
    assert "engine/server.py" in text


def last_error(server: Server) -> dict[str, Any]:
    return [event for line in server.lines if (event := json.loads(line) if line.startswith("{") else {})
            and event.get("level") == "error"][-1]


def test_an_engine_that_ends_too_often_is_given_up_with_70(server: Server) -> None:
    while server.process.poll() is None:
        for pid in server.pids()["engine"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    assert server.wait_exit() == 70
    assert last_error(server)["event"] == "giving up"
    assert last_error(server)["exit_code"] == 70


@pytest.mark.slow
def test_one_that_hangs_too_often_is_given_up_with_71() -> None:
    with serving("--engine-stall-timeout", "1", "--max-engine-restarts", "0") as server:
        os.kill(engine_of(server), signal.SIGSTOP)
        assert server.wait_exit() == 71
        assert last_error(server)["exit_code"] == 71
