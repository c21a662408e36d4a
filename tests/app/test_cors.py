"""Pages of other origins: let in where the operator says so, with refusals that they can read, and nowhere else."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from quire.app import cors
from quire.app.cli import load_settings
from quire.engine.errors import ConfigError, OverloadedError
from tests.app.conftest import KEY
from tests.app.fake_engine import FakeEngine

PAGE = "https://chat.example.org"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
CHAT = {"messages": [{"role": "user", "content": "x"}]}
ASKING = {"origin": PAGE, "access-control-request-method": "POST",
          "access-control-request-headers": "authorization,content-type,x-request-timeout"}


@asynccontextmanager
async def page_of(app: Starlette, key: str | None = KEY, origin: str = PAGE) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"origin": origin} | ({} if key is None else {"authorization": f"Bearer {key}"})
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=headers) as client:
        yield client


def told(reply: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.startswith("access-control-")}


async def test_by_default_no_page_is_let_in(make_app: Callable[..., Starlette]) -> None:
    async with page_of(make_app(key_digests=[DIGEST])) as client:
        for reply in (await client.get("/v1/models"), await client.post("/v1/chat/completions", json=CHAT),
                      await client.options("/v1/chat/completions", headers=ASKING)):
            assert told(reply) == {} and "vary" not in reply.headers
        assert reply.status_code == 405


async def test_a_preflight_needs_no_key(make_app: Callable[..., Starlette]) -> None:
    async with page_of(make_app(key_digests=[DIGEST], allowed_origins=[PAGE]), key=None) as client:
        reply = await client.options("/v1/chat/completions", headers=ASKING)
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == PAGE
        assert reply.headers["access-control-allow-headers"] == ASKING["access-control-request-headers"]
        assert "POST" in reply.headers["access-control-allow-methods"]
        assert "access-control-allow-credentials" not in reply.headers
        assert reply.headers["x-request-id"]  # so it has a line in the log
        other = await client.options("/v1/chat/completions", headers=ASKING | {"origin": "https://evil.example"})
        assert other.status_code == 400 and "access-control-allow-origin" not in other.headers


async def test_a_page_can_read_every_refusal(make_app: Callable[..., Starlette], fake: FakeEngine) -> None:
    app = make_app(key_digests=[DIGEST], allowed_origins=[PAGE], max_body_bytes=1024)

    async def replies(client: httpx.AsyncClient) -> AsyncIterator[tuple[int, httpx.Response]]:
        yield 401, await client.get("/v1/models", headers={"authorization": "Bearer wrong"})
        yield 404, await client.get("/nowhere")
        yield 405, await client.get("/v1/chat/completions")
        yield 400, await client.post("/v1/chat/completions", json={"messages": 1})
        yield 413, await client.post("/v1/completions", json={"prompt": "x" * 2000})
        yield 200, await client.post("/v1/chat/completions", json=CHAT | {"stream": True})
        fake.refuse = OverloadedError("too many", retry_after_s=2.0, own_limit=True)
        yield 429, await client.post("/v1/chat/completions", json=CHAT)
        fake.refuse = RuntimeError("unforeseen")
        yield 500, await client.post("/v1/chat/completions", json=CHAT)
        fake.refuse, fake.info = None, None
        yield 503, await client.post("/v1/chat/completions", json=CHAT)

    async with page_of(app) as client:
        async for status, reply in replies(client):
            assert reply.status_code == status
            assert reply.headers["access-control-allow-origin"] == PAGE, status
            exposed = reply.headers["access-control-expose-headers"].split(", ")
            assert {"x-request-id", "retry-after", "retry-after-ms", "warning", "x-ratelimit-remaining-requests",
                    "x-ratelimit-reset-tokens"} <= set(exposed)
            assert "Origin" in reply.headers["vary"]


async def test_another_page_gets_nothing_to_read(make_app: Callable[..., Starlette]) -> None:
    async with page_of(make_app(allowed_origins=[PAGE]), origin=PAGE + ".evil.example") as client:
        assert "access-control-allow-origin" not in (await client.get("/v1/models")).headers


async def test_any_page_may_come_where_the_operator_says_so(make_app: Callable[..., Starlette]) -> None:
    async with page_of(make_app(allowed_origins=["*"]), origin="http://anything.example") as client:
        assert (await client.get("/v1/models")).headers["access-control-allow-origin"] == "*"


async def test_methods_and_headers_can_be_narrowed_and_credentials_let_in(make_app: Callable[..., Starlette]) -> None:
    app = make_app(allowed_origins=[PAGE], allowed_methods=["POST"], allowed_headers=["Authorization"],
                   allow_credentials=True)
    async with page_of(app) as client:
        assert (await client.get("/v1/models")).headers["access-control-allow-credentials"] == "true"
        only_key = {"access-control-request-headers": "authorization"}
        assert (await client.options("/v1/models", headers=ASKING | only_key)).status_code == 200
        assert (await client.options("/v1/models", headers=ASKING)).status_code == 400
        assert (await client.options("/v1/models", headers=ASKING | only_key | {
            "access-control-request-method": "GET"})).status_code == 400


@pytest.mark.parametrize(("argv", "expected"), [
    (["--allowed-origins", "https://a.example/"], "--allowed-origins: 'https://a.example/' is no origin as browsers"),
    (["--allowed-origins", "https://a.example/"], "no path); say https://a.example"),
    (["--allowed-origins", "https://A.example:443"], "; say https://a.example"),
    (["--allowed-origins", "a.example"], "; it looks like https://chat.example.org"),
    (["--allowed-origins", "null"], "say * if any page may come"),
    (["--allowed-origins", "*", "--allow-credentials"], "--allow-credentials: with --allowed-origins * any page could"),
    (["--allow-credentials"], "--allow-credentials: needs --allowed-origins"),
    (["--allowed-headers", "x-a"], "--allowed-headers: says nothing without --allowed-origins"),
    (["--allowed-origins", "*", "--allowed-methods", "GET POST"], "--allowed-methods: 'GET POST' is the name of no"),
])
def test_what_cannot_be_meant_is_refused_at_the_start(argv: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings("serve", argv)
    [problem] = caught.value.problems
    assert expected in problem


@pytest.mark.parametrize("origin", ["*", PAGE, "http://localhost:3000", "http://[::1]:8080", "https://10.0.0.7",
                                    "chrome-extension://abcdefghijklmnop", "app://obsidian.md"])
def test_origins_are_taken_as_browsers_send_them(origin: str) -> None:
    assert cors.problems([origin], None, None, credentials=False) == []


@pytest.mark.parametrize(("variables", "expected"), [
    ({"QUIRE_ALLOWED_ORIGINS": '["https://a.example", "https://b.example"]'}, ["https://a.example", "https://b.example"]),
    ({"QUIRE_ALLOWED_ORIGINS": "https://a.example,https://b.example"}, ["https://a.example", "https://b.example"]),
    ({"QUIRE_ALLOWED_ORIGINS": "[]"}, []),
])
def test_a_list_may_be_json(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Any) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert load_settings("serve", []).settings.allowed_origins == expected
