"""--root-path: with its prefix and without it a path is the same, to everything that looks at paths."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from starlette.applications import Starlette
from structlog.testing import capture_logs

from tests.app.conftest import KEY

BODY = {"messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(params=["/llm", "/llm/"])
async def prefixed(make_app: Callable[..., Starlette],
                   request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(root_path=request.param, key_digests=[hashlib.sha256(KEY.encode()).hexdigest()], admin_port=9000)
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/models", "/tokenize", "/v1/chat/completions", "/nowhere", "/livez", "/readyz"])
async def test_both_ways_in_lead_to_the_same(prefixed: httpx.AsyncClient, path: str) -> None:
    for headers in ({}, {"authorization": f"Bearer {KEY}"}):
        with capture_logs() as logs:
            plain, below = [await prefixed.request("POST" if "chat" in path else "GET", prefix + path, headers=headers,
                                                   json=BODY) for prefix in ("", "/llm")]
        assert plain.status_code == below.status_code
        assert plain.json().get("error") == below.json().get("error")
        paths = {line["path"] for line in logs if line["event"] == "request"}
        assert paths == (set() if path in ("/livez", "/readyz") else {path})


@pytest.mark.parametrize("path", [
    "/llm/llm/livez", "/llmlivez", "/llm//livez", "/LLM/livez", "/%2fllm/livez", "/llm/%2e%2e/livez", "/x/llm/livez",
    "/llm/llm", "/llm/llm/", "/llm/llm/v1/models", "/llm%2fllm%2flivez", "/llm%2f%2flivez", "/livez%2f",
    "/llm/livez%2f..%2f..%2fv1", "/llm/livez/v1/models", "/llm/metrics", "/llm/admin", "/llm/admin/status",
    "/llm%2fadmin%2fstatus",
])
async def test_no_other_spelling_gets_past_the_key(prefixed: httpx.AsyncClient, path: str) -> None:
    assert (await prefixed.get(path)).status_code == 401
    assert (await prefixed.get(path, headers={"authorization": f"Bearer {KEY}"})).status_code == 404


async def test_an_escaped_slash_is_a_slash_to_all_alike(prefixed: httpx.AsyncClient) -> None:
    assert (await prefixed.get("/llm%2fv1%2fmodels")).status_code == 401
    assert (await prefixed.get("/llm%2flivez")).status_code == 200


async def test_metrics_know_one_path(prefixed: httpx.AsyncClient, make_app: Callable[..., Starlette]) -> None:
    app = make_app(root_path="/llm")
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        for path in ("/llm/v1/chat/completions", "/v1/chat/completions"):
            assert (await client.post(path, json=BODY)).status_code == 200
        text = (await client.get("/metrics")).text
    assert 'http_requests_total{deadline="",handler="/v1/chat/completions",method="POST",status="200"} 2.0' in text
