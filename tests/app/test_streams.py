"""Streams: when the head goes out, what keeps a quiet one alive, and what a failure looks like before and after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from quire.app.errors import ApiError
from quire.app.in_flight import Running
from quire.app.sse import DONE, PING, EventStream, LineStream
from quire.app.telemetry.record import RequestRecord
from tests.virtual_time import in_virtual_time

pytestmark = pytest.mark.timeout(20)


class Wire:
    """The server's side of one reply."""

    def __init__(self, slow_s: float = 0.0) -> None:
        self.sent: list[dict[str, Any]] = []
        self.busy = 0
        self.reads = asyncio.Event()
        self.reads.set()
        self._slow_s = slow_s

    async def send(self, message: Any) -> None:
        assert not self.busy, "two writes at once"
        self.busy += 1
        await self.reads.wait()
        await asyncio.sleep(self._slow_s)
        self.busy -= 1
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.sent)


async def run(frames: AsyncGenerator[bytes, None], wire: Wire, interval_s: float, after: Callable[[Running], None]
              = lambda running: None, kind: type[EventStream] = EventStream) -> None:
    async def reply() -> None:
        task = asyncio.current_task()
        assert task is not None
        running = Running(task, RequestRecord("id"))
        stream = kind(frames, running, ping_interval_s=interval_s, headers={"x-a": "b"})
        after(running)
        await stream({}, None, wire.send)  # type: ignore[arg-type]

    await asyncio.create_task(reply())


async def of(*parts: bytes | float | Exception) -> AsyncGenerator[bytes, None]:
    for part in parts:
        if isinstance(part, Exception):
            raise part
        if isinstance(part, float):
            await asyncio.sleep(part)
        else:
            yield part


@in_virtual_time
async def test_the_head_comes_with_the_first_frame() -> None:
    wire = Wire()
    task = asyncio.create_task(run(of(0.1, b"a", b"b"), wire, 5.0))
    await asyncio.sleep(0.05)
    assert not wire.sent
    await task
    assert [m["type"] for m in wire.sent] == ["http.response.start"] + ["http.response.body"] * 3
    headers = dict(wire.sent[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"x-a"] == b"b"
    assert b"content-length" not in headers
    assert wire.body == b"ab"
    assert wire.sent[-1]["more_body"] is False


@in_virtual_time
async def test_comments_come_while_nothing_else_does() -> None:
    wire = Wire()
    await run(of(50.0, b"a", 50.0, b"b"), wire, 15.0)
    assert wire.body == 3 * PING + b"a" + 3 * PING + b"b"


@in_virtual_time
async def test_between_lines_an_empty_one_is_the_comment() -> None:
    wire = Wire()
    await run(of(0.25, b"{}\n", ApiError(503, "late")), wire, 0.1, kind=LineStream)
    quiet, _, rest = wire.body.partition(b"{}\n")
    assert quiet in (b"\n", b"\n\n")
    assert rest == ApiError(503, "late").body() + b"\n"


@in_virtual_time
async def test_frames_put_comments_off() -> None:
    parts: list[bytes | float] = [b"a", 0.02] * 25
    wire = Wire()
    await run(of(*parts), wire, 0.4)
    assert wire.body == b"a" * 25


@in_virtual_time
async def test_an_interval_of_0_is_none() -> None:
    wire = Wire()
    await run(of(0.2, b"a"), wire, 0.0)
    assert wire.body == b"a"


@pytest.mark.parametrize("error", [ApiError(503, "late"), RuntimeError("bug")])
@in_virtual_time
async def test_a_failure_before_the_first_byte_is_the_callers_to_answer(error: Exception) -> None:
    wire = Wire()
    with pytest.raises(type(error)):
        await run(of(0.01, error), wire, 5.0)
    assert not wire.sent


@pytest.mark.parametrize(("first", "said"), [(b"a", b"a"), (0.3, PING)])
@in_virtual_time
async def test_a_failure_after_it_is_an_event(first: bytes | float, said: bytes) -> None:
    wire = Wire()
    error = ApiError(503, "late")
    await run(of(first, error), wire, 0.2)
    assert wire.body == said + EventStream.frame(error.body()) + DONE
    assert wire.sent[-1]["more_body"] is False


@in_virtual_time
async def test_comments_never_mix_with_frames_however_slow_the_client_reads() -> None:
    wire = Wire(slow_s=0.03)
    await run(of(*[b"a", 0.01] * 8), wire, 0.01)
    assert wire.body.replace(PING, b"") == b"a" * 8


@in_virtual_time
async def test_comments_do_not_pile_up_for_a_client_that_reads_nothing() -> None:
    wire = Wire()
    task = asyncio.create_task(run(of(b"a", b"b"), wire, 0.02))
    wire.reads.clear()
    await asyncio.sleep(0.3)
    wire.reads.set()
    await task
    assert wire.body == b"ab"


@in_virtual_time
async def test_a_client_that_reads_nothing_does_not_hold_an_ended_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.app.sse.FAREWELL_S", 0.05)
    wire = Wire()

    def end_soon(running: Running) -> None:
        wire.reads.clear()
        asyncio.get_running_loop().call_later(0.05, running.end, "deadline", ApiError(504, "over"))

    await run(of(0.01, 10.0, b"never"), wire, 0.01, end_soon)  # its head waits for the client
    assert not wire.sent


@in_virtual_time
async def test_five_hundred_quiet_streams_cost_one_timer_each() -> None:
    before = len(asyncio.all_tasks())
    wires = [Wire() for _ in range(500)]
    tasks = [asyncio.create_task(run(of(b"a", 0.5, b"b"), wire, 30.0)) for wire in wires]
    await asyncio.sleep(0.3)
    assert len(asyncio.all_tasks()) - before == 2 * len(wires)  # `run` and its reply: no task for comments
    await asyncio.gather(*tasks)
    assert all(wire.body == b"ab" for wire in wires)
