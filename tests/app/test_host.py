"""A page in a browser, whose name was made to point at this machine, gets nothing from a server without keys."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from tests.app.conftest import KEY

EVIL = "evil.example:8209"


@asynccontextmanager
async def talking_to(app: Starlette, server: tuple[str, int | None] = ("127.0.0.1", 8209),
                     **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    async def at_server(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        here: Scope = {**scope, "server": server}
        await app(here, receive, send)

    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(at_server), base_url="http://localhost", headers=headers) as client:
        yield client


@pytest.mark.parametrize("host", [EVIL, "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[evil]"])
async def test_another_name_is_refused_and_told_why(make_app: Callable[..., Starlette], host: str) -> None:
    async with talking_to(make_app()) as client:
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/metrics"), ("GET", "/no")):
            reply = await client.request(method, path, headers={"host": host, "origin": f"http://{host}"})
            assert reply.status_code == 403
            error = reply.json()["error"]
            assert error["type"] == "PermissionDeniedError"
            assert all(part in error["message"] for part in (host, "VLLM_API_KEY", "--allow-public-without-key"))
            assert reply.headers["x-request-id"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8209", "127.0.0.1", "127.0.0.1:8209", "[::1]:8209", "[::1]",
                                  "192.168.1.7:80"])
async def test_addresses_and_localhost_are_answered(make_app: Callable[..., Starlette], host: str) -> None:
    async with talking_to(make_app()) as client:
        assert (await client.get("/v1/models", headers={"host": host})).status_code == 200


async def test_the_name_to_listen_on_is_answered(make_app: Callable[..., Starlette]) -> None:
    async with talking_to(make_app(host="Box.lan")) as client:
        assert (await client.get("/v1/models", headers={"host": "box.lan:8000"})).status_code == 200
        assert (await client.get("/v1/models", headers={"host": EVIL})).status_code == 403


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz", "/startupz", "/health", "/ping"])
async def test_probes_may_use_any_name(make_app: Callable[..., Starlette], path: str) -> None:
    async with talking_to(make_app()) as client:
        assert (await client.get(path, headers={"host": "pod.cluster"})).status_code == 200


async def test_unix_sockets_and_the_admin_port_are_no_browsers(make_app: Callable[..., Starlette]) -> None:
    async with talking_to(make_app(), ("/run/quire.sock", None)) as client:
        assert (await client.get("/v1/models", headers={"host": "anything"})).status_code == 200
    async with talking_to(make_app(admin_port=9000), ("127.0.0.1", 9000)) as client:
        assert (await client.get("/metrics", headers={"host": "quire-metrics"})).status_code == 200


async def test_with_a_key_or_open_to_anyone_any_name_will_do(make_app: Callable[..., Starlette]) -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    async with talking_to(make_app(key_digests=[digest]), authorization=f"Bearer {KEY}") as client:
        assert (await client.get("/v1/models", headers={"host": EVIL})).status_code == 200
    async with talking_to(make_app(allow_public_without_key=True)) as client:
        assert (await client.get("/v1/models", headers={"host": EVIL})).status_code == 200
