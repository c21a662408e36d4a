"""The line that a request leaves in the log: what it holds, and what it never does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from structlog.testing import capture_logs

from quire.app.settings import ServeSettings
from quire.app.telemetry.logging import MAX_CONTENT_CHARS
from tests.app.fake_engine import FakeEngine

CHAT = {"messages": [{"role": "user", "content": "zebra"}]}
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def line(app: Starlette, json: Any, headers: dict[str, str] | None = None) -> dict[str, Any]:
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        with capture_logs() as logs:
            await client.post("/v1/chat/completions?secret=abc", json=json, headers=headers)
    [found] = [entry for entry in logs if entry["event"] == "request"]
    return dict(found)


async def test_a_line_says_what_was_asked_and_what_became_of_it(make_app: Callable[..., Starlette]) -> None:
    found = await line(make_app(), CHAT | {"stream": True, "max_tokens": 4},
                       {"x-request-id": "mine-1", "traceparent": PARENT})
    assert found.pop("ms") >= found.pop("ttft_ms") >= found.pop("queue_ms") >= 0
    assert found.pop("tpot_ms") >= 0
    assert found == {
        "event": "request", "log_level": "info", "method": "POST", "path": "/v1/chat/completions", "status": 200,
        "request_id": "mine-1", "trace_id": PARENT.split("-")[1], "client": "127.0.0.1", "model": "m", "stream": True,
        "prompt_tokens": 5, "cached_tokens": 3, "output_tokens": 4, "finish": "stop"}


async def test_a_refusal_says_why(make_app: Callable[..., Starlette], fake: FakeEngine) -> None:
    assert (await line(make_app(), {}))["rejected"] == "invalid"
    fake.fails_after = 2
    failed = await line(make_app(), CHAT)
    assert failed["status"] == 500
    assert failed["finish"] == "error"


@pytest.mark.parametrize("parent", ["", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "00-xyz-00f067aa0ba902b7-01",
                                    PARENT + " ", PARENT.upper()])
async def test_what_is_no_trace_id_is_not_taken_for_one(make_app: Callable[..., Starlette], parent: str) -> None:
    assert "trace_id" not in await line(make_app(), CHAT, {"traceparent": parent})


async def test_content_is_logged_only_for_who_asks_twice(make_app: Callable[..., Starlette], fake: FakeEngine) -> None:
    assert "zebra" not in str(await line(make_app(), CHAT))
    assert "zebra" not in str(await line(make_app(log_content=True), CHAT))
    assert ServeSettings(log_content=True).problems()
    found = await line(make_app(log_content=True, log_content_is_permitted=True), CHAT | {"n": 2})
    assert found["prompts"] == ["zebra"]
    assert found["outputs"] == [fake.text] * 2


async def test_long_content_is_cut(make_app: Callable[..., Starlette]) -> None:
    app = make_app(log_content=True, log_content_is_permitted=True, max_body_bytes=100_000)
    found = await line(app, {"messages": [{"role": "user", "content": "z" * (MAX_CONTENT_CHARS + 1)}]})
    assert found["prompts"] == ["z" * MAX_CONTENT_CHARS]


async def test_no_line_without_access_log_and_none_for_probes(make_app: Callable[..., Starlette]) -> None:
    app = make_app(disable_access_log=True)
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://t") as client:
        with capture_logs() as logs:
            await client.post("/v1/chat/completions", json=CHAT)
            await client.get("/readyz")
            await client.get("/metrics")
    assert not [entry for entry in logs if entry["event"] == "request"]
