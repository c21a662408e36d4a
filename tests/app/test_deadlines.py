"""A request ends when its time is over, with a reply that says which time, and what set it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Literal

import httpx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.datastructures import Headers
from structlog.testing import capture_logs

from quire.app import deadlines
from quire.app.deadlines import Deadlines
from quire.app.errors import ApiError
from quire.app.settings import ServeSettings
from quire.engine.errors import OverloadedError
from tests.app.fake_engine import FakeEngine
from tests.shifted_time import ShiftedClock

CHAT = {"messages": [{"role": "user", "content": "x"}]}
HEADERS = {"queue": "x-queue-timeout", "ttft": "x-ttft-timeout", "total": "x-request-timeout"}
FLAGS = {"queue": "queue_timeout", "ttft": "ttft_timeout", "total": "request_timeout"}


@given(name=st.sampled_from(sorted(HEADERS)), limit_s=st.one_of(st.just(0.0), st.floats(0.001, 1e5)),
       given_s=st.floats(0.001, 1e6))
def test_a_request_may_ask_for_less_never_for_more(name: str, limit_s: float, given_s: float) -> None:
    settings = ServeSettings(**{FLAGS[name]: limit_s})
    found = getattr(Deadlines.of(Headers({HEADERS[name]: repr(given_s)}), settings), name)
    assert found.seconds == min(given_s, limit_s or math.inf)
    assert (HEADERS[name] in found.source) is (given_s < (limit_s or math.inf))
    assert getattr(Deadlines.of(Headers({}), settings), name).seconds == limit_s


@given(name=st.sampled_from(sorted(HEADERS)), value=st.one_of(
    st.sampled_from(["0", "-1", "inf", "-inf", "nan", "", "1s", "1e999", "0x1", "1,5", "soon"]),
    st.text(st.characters(codec="latin-1"), max_size=80)))
def test_what_is_no_time_is_400_and_names_the_header(name: str, value: str) -> None:
    with contextlib.suppress(ValueError):
        assume(not 0 < float(value) < math.inf)
    with pytest.raises(ApiError, match=HEADERS[name]) as caught:
        Deadlines.of(Headers({HEADERS[name]: value}), ServeSettings())
    assert caught.value.status == 400
    assert len(caught.value.message) < 400


@pytest.fixture
async def stuck(make_app: Callable[..., Starlette], fake: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A server whose engine accepts and then produces nothing."""
    fake.gate.clear()
    app = make_app(ttft_timeout=30.0, sse_ping_interval=0.0)
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client
        assert len(app.state.service.in_flight) == 0


@pytest.fixture
async def clock() -> ShiftedClock:
    return ShiftedClock(asyncio.get_running_loop())


async def streaming(fake: FakeEngine, post: Coroutine[Any, Any, httpx.Response]) -> asyncio.Task[httpx.Response]:
    """The request, once the engine has it."""
    task = asyncio.create_task(post)
    while not fake.streams:
        await asyncio.sleep(0.001)
    return task


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("header", "retry"), [("x-ttft-timeout", None), ("x-request-timeout", "false")])
async def test_before_the_reply_began_it_is_504(stuck: httpx.AsyncClient, fake: FakeEngine, header: str,
                                                retry: str | None, stream: bool, clock: ShiftedClock) -> None:
    with capture_logs() as logs:
        post = await streaming(fake, stuck.post("/v1/chat/completions", json=CHAT | {"stream": stream},
                                                headers={header: "25"}))
        await clock.later(23)
        assert not post.done()
        await clock.later(2)
        reply = await post
    assert reply.status_code == 504
    error = reply.json()["error"]
    assert error["type"] == "TimeoutError"
    assert f"25 seconds (the header {header})" in error["message"]
    assert reply.headers.get("x-should-retry") == retry
    assert fake.streams[0].closed
    line = next(line for line in logs if line["event"] == "request")
    assert (line["status"], line["rejected"], line["aborted"]) == (504, "client_deadline", "deadline")
    failed = 'status="504"} 1.0'
    assert f'{{deadline="client",handler="/v1/chat/completions",method="POST",{failed}' in (
        await stuck.get("/metrics")).text, "which the alerts leave out"


async def test_the_servers_own_deadline_names_its_flag(make_app: Callable[..., Starlette], fake: FakeEngine,
                                                       clock: ShiftedClock) -> None:
    fake.gate.clear()
    app = make_app(ttft_timeout=25.0)
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        post = await streaming(fake, client.post("/v1/completions", json={"prompt": ["a", "b"]},
                                                 headers={"x-ttft-timeout": "90"}))
        await clock.later(25)
        reply = await post
    assert reply.status_code == 504
    assert "(--ttft-timeout)" in reply.json()["error"]["message"]
    assert len(fake.streams) == 2 and all(stream.closed for stream in fake.streams)


async def test_midway_it_is_an_error_event_and_the_end(make_app: Callable[..., Starlette], fake: FakeEngine,
                                                       clock: ShiftedClock) -> None:
    fake.gate.clear()
    app = make_app(sse_ping_interval=10.0)
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        with capture_logs() as logs:
            post = await streaming(fake, client.post("/v1/chat/completions", json=CHAT | {"stream": True},
                                                     headers={"x-request-timeout": "25"}))
            for seconds in (10, 10, 5):
                await clock.later(seconds)
            reply = await post
    assert reply.status_code == 200
    *pings, error, done, end = reply.text.split("\n\n")
    assert pings == [": ping"] * 2
    assert '"code":504' in error and "x-request-timeout" in error
    assert (done, end) == ("data: [DONE]", "")
    assert fake.streams[0].closed
    line = next(line for line in logs if line["event"] == "request")
    assert line["aborted"] == "deadline"
    assert not line.get("rejected")  # a part of it was served


class OneThenNone(asyncio.Event):
    """Lets the engine produce one token before it is set."""

    num_passed = 0

    async def wait(self) -> Literal[True]:
        self.num_passed += 1
        return True if self.num_passed == 1 else await super().wait()


async def test_a_first_token_in_time_is_not_ended(client: httpx.AsyncClient, fake: FakeEngine,
                                                  clock: ShiftedClock) -> None:
    fake.gate = OneThenNone()
    post = await streaming(fake, client.post("/v1/chat/completions", json=CHAT, headers={"x-ttft-timeout": "25"}))
    await clock.later(100)
    fake.gate.set()
    assert (await post).status_code == 200


async def test_what_is_left_of_the_queue_time_goes_to_the_engine(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    for headers, most in (({}, 300.0), ({"x-queue-timeout": "5"}, 5.0), ({"x-queue-timeout": "900"}, 300.0)):
        assert (await client.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200
        assert most - 2 < fake.submitted[-1][2]["queue_timeout_s"] < most


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_after_acceptance_is_503(client: httpx.AsyncClient, fake: FakeEngine, stream: bool) -> None:
    fake.fails_after = 0
    fake.failure = OverloadedError("Nothing took it up in time.", 3.0, reason="queue_timeout")
    with capture_logs() as logs:
        reply = await client.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "3"
    assert next(line for line in logs if line["event"] == "request")["rejected"] == "queue_timeout"


async def test_an_engine_that_is_away_does_not_hold_a_request_beyond_its_queue_time(
        client: httpx.AsyncClient, fake: FakeEngine, clock: ShiftedClock) -> None:
    fake.away = True
    post = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT, headers={"x-queue-timeout": "25"}))
    await clock.later(25)
    assert not post.done()
    await clock.later(deadlines._QUEUE_GRACE_S)
    reply: Any = await post
    assert reply.status_code == 503
    assert "restarting" in reply.json()["error"]["message"]
    assert reply.headers["retry-after"]


@pytest.mark.parametrize(("headers", "reason"), [({}, "queue_timeout"), ({"x-queue-timeout": "5"}, "client_deadline")])
async def test_the_engines_refusal_after_a_time_in_the_queue_says_whose_choice_it_was(
        client: httpx.AsyncClient, fake: FakeEngine, headers: dict[str, str], reason: str) -> None:
    fake.fails_after, fake.failure = 0, OverloadedError("too long", 1.0, reason="queue_timeout")
    with capture_logs() as logs:
        reply = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert reply.status_code == 503
    assert next(line for line in logs if line["event"] == "request")["rejected"] == reason
