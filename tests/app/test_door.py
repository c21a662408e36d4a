"""What the engine refused is refused again without asking, for as long as the engine said, and cheaply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from quire.app.door import Door
from quire.engine.errors import OverloadedError
from quire.engine.messages import RateState
from tests.app.fake_engine import FakeEngine
from tests.app.test_service import Connection

CHAT = {"messages": [{"role": "user", "content": "x"}]}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def refuses(door: Door, key: str) -> bool:
    try:
        door.check(key)
    except OverloadedError:
        return True
    return False


times = st.integers(0, 800).map(lambda n: n / 8)  # without rounding


@given(closed_s=times, passed_s=times, own_limit=st.booleans())
def test_closed_for_as_long_as_the_engine_said_and_for_whom(closed_s: float, passed_s: float, own_limit: bool) -> None:
    clock = Clock()
    door = Door(clock=clock)
    door.refused("a", OverloadedError("no", closed_s, own_limit=own_limit, closed_s=closed_s))
    clock.now += passed_s
    closed = clock.now - 1000.0 < closed_s
    assert refuses(door, "a") is closed
    assert refuses(door, "b") is (closed and not own_limit)
    clock.now += closed_s
    assert not refuses(door, "a")
    assert not door._closed


def test_the_refusal_is_the_engines_with_the_time_that_is_left() -> None:
    clock = Clock()
    door = Door(clock=clock)
    rate = RateState(limit_requests=60, remaining_requests=0, reset_requests_s=30.0)
    door.refused("a", OverloadedError("slow down", 10.0, own_limit=True, reason="key_requests", rate=rate,
                                      closed_s=10.0))
    clock.now += 4
    with pytest.raises(OverloadedError, match="slow down") as caught:
        door.check("a")
    error = caught.value
    assert (error.retry_after_s, error.own_limit, error.reason) == (6.0, True, "key_requests")
    assert error.rate == RateState(limit_requests=60, remaining_requests=0, reset_requests_s=26.0)


def test_memory_is_one_entry_a_key() -> None:
    door = Door(clock=Clock())
    for i in range(1000):
        door.refused(f"key-{i % 3}", OverloadedError("no", 1.0, own_limit=True, closed_s=1.0))
        door.refused(f"key-{i % 3}", OverloadedError("no", 1.0, closed_s=1.0))
    assert len(door._closed) == 4


async def test_the_engine_is_asked_once_then_the_worker_refuses(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.refuse = OverloadedError("The queue is full.", 2.0, reason="queue_requests", closed_s=60.0)
    first = await client.post("/v1/chat/completions", json=CHAT)
    fake.refuse = RuntimeError("asked again")
    for path in ("/v1/chat/completions", "/v1/completions"):
        again = await client.post(path, content=b"never looked at", headers={"content-type": "application/json"})
        assert again.status_code == first.status_code == 503
        assert again.json() == first.json()
    assert (await client.post("/tokenize", json={"prompt": "a"})).status_code == 200  # nothing of the engine's


@pytest.mark.parametrize("state", ["closed", "loading"])
async def test_a_refusal_does_not_wait_for_the_body(make_app: Callable[..., Starlette], fake: FakeEngine,
                                                    state: str) -> None:
    app = make_app()
    async with app.router.lifespan_context(app):
        if state == "closed":
            app.state.service.door.refused("", OverloadedError("full", 1.0, closed_s=60.0))
        else:
            fake.info = None
        connection = Connection(app, b"")
        connection._receive = None  # type: ignore[assignment]
        await connection.task
        assert connection.sent[0]["status"] == 503


@pytest.mark.parametrize(("own_limit", "status"), [(True, 429), (False, 503)])
async def test_a_refusal_says_when_to_come_again_and_where_the_key_stands(client: httpx.AsyncClient, fake: FakeEngine,
                                                                         own_limit: bool, status: int) -> None:
    fake.refuse = OverloadedError("no", 1.25, own_limit=own_limit, reason="key_requests", rate=RateState(
        limit_requests=60, remaining_requests=0, reset_requests_s=59.5, limit_tokens=1000, remaining_tokens=17,
        reset_tokens_s=361.0))
    for body in (CHAT, CHAT | {"stream": True}):
        reply = await client.post("/v1/chat/completions", json=body)
        assert reply.status_code == status
        expected = {
            "retry-after": "2", "retry-after-ms": "1250", "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "59.5s",
            "x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": "17",
            "x-ratelimit-reset-tokens": "6m1s"}
        assert {name: reply.headers.get(name) for name in expected} == expected
        error = reply.json()["error"]
        assert error == {"message": "no", "param": None, "code": status,
                         "type": "RateLimitError" if own_limit else "ServiceUnavailableError"}


async def test_replies_say_where_the_key_stands_too(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.rate = RateState(limit_tokens=500, remaining_tokens=499, reset_tokens_s=0.12)
    bodies: list[tuple[str, dict[str, Any]]] = [("chat/completions", CHAT), ("completions", {"prompt": ["a", "b"]})]
    for path, body in bodies:
        for stream in (False, True):
            reply = await client.post(f"/v1/{path}", json=body | {"stream": stream})
            assert reply.status_code == 200
            assert reply.headers["x-ratelimit-remaining-tokens"] == "499"
            assert reply.headers["x-ratelimit-reset-tokens"] == "120ms"
            assert "x-ratelimit-limit-requests" not in reply.headers  # the key has no such limit


async def test_a_failure_of_what_was_let_in_says_so_too(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.rate = RateState(limit_requests=5, remaining_requests=4, reset_requests_s=1)
    fake.fails_after = 0
    for stream in (False, True):
        reply = await client.post("/v1/chat/completions", json=CHAT | {"stream": stream})
        assert reply.status_code == 500
        assert reply.headers["x-ratelimit-remaining-requests"] == "4"
