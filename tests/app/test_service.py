"""What holds for every endpoint: keys, ids, limits, errors, probes, metrics, clients that go away."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from structlog.testing import capture_logs

from quire.app import anthropic_errors, errors
from quire.app.routes import PUBLIC, ROUTES
from tests.app.conftest import KEY
from tests.app.fake_engine import FakeEngine

CHAT = {"messages": [{"role": "user", "content": "my secret prompt"}]}


def paths() -> list[tuple[str, str]]:
    return [(method, route.path.replace("{model:path}", "m")) for route in ROUTES
            for method in sorted(route.methods or ())]


@pytest.mark.parametrize(("method", "path"), [p for p in paths() if p[1] not in PUBLIC] + [("GET", "/nowhere")])
async def test_every_path_but_probes_needs_the_key(guarded: httpx.AsyncClient, method: str, path: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"},
                    {"authorization": f"Bearer {KEY.upper()}"}, {"x-api-key": "wrong"}, {"x-api-key": f"Bearer {KEY}"}):
        reply = await guarded.request(method, path, headers=headers)
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"] == "Bearer"
        if method != "HEAD":
            of_anthropic = path in anthropic_errors.PATHS
            assert reply.json()["error"]["type"] == ("authentication_error" if of_anthropic else "AuthenticationError")
    for headers in ({"authorization": f"bearer {KEY}"}, {"x-api-key": KEY},
                    {"authorization": "Bearer another's", "x-api-key": KEY}):
        assert (await guarded.request(method, path, headers=headers)).status_code != 401


@pytest.mark.parametrize("path", sorted(PUBLIC))
async def test_probes_are_open(guarded: httpx.AsyncClient, path: str) -> None:
    assert (await guarded.get(path)).status_code == 200


async def test_neither_keys_nor_prompts_reach_the_log(guarded: httpx.AsyncClient) -> None:
    with capture_logs() as logs:
        await guarded.post("/v1/chat/completions?token=abc", json=CHAT, headers={"authorization": f"Bearer {KEY}"})
        await guarded.post("/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer guess-of-a-key"})
    assert [line["status"] for line in logs if line["event"] == "request"] == [200, 401]
    text = str(logs)
    assert KEY not in text
    assert "guess" not in text
    assert "secret" not in text
    assert "abc" not in text
    line = logs[0]
    assert line["path"] == "/v1/chat/completions"
    assert line["output_tokens"] == 5
    assert line["finish"] == "stop"
    assert line["key"]
    assert line["ttft_ms"] is not None
    assert line["tpot_ms"] is not None


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2_3", True), ("a b", False), ("x" * 129, False), ("ü", False)])
async def test_a_harmless_request_id_is_echoed_another_replaced(client: httpx.AsyncClient, given: str,
                                                                kept: bool) -> None:
    reply = await client.post("/v1/chat/completions", json=CHAT, headers={b"x-request-id": given.encode()})
    assert (reply.headers["x-request-id"] == given) is kept
    assert reply.json()["id"] == "chatcmpl-" + reply.headers["x-request-id"]


async def test_errors_of_the_framework_have_openais_shape(client: httpx.AsyncClient) -> None:
    for reply, status in ((await client.get("/nowhere"), 404), (await client.get("/v1/chat/completions"), 405)):
        assert reply.status_code == status
        assert reply.json()["error"]["code"] == status
        assert reply.headers["x-request-id"]


@pytest.mark.parametrize(("path", "hint"), [
    ("/chat/completions", "Did you mean /v1/chat/completions? The base URL of OpenAI's clients ends in /v1."),
    ("/models", "Did you mean /v1/models?"),
    ("/v1/v1/chat/completions", "/v1 twice"),
    ("/v1/completions/", "Did you mean /v1/completions?"),
    ("/v1/tokenize", "Did you mean /tokenize?"),
    ("/v1/assistants", "There is no /v1/assistants here. The paths are "),
])
async def test_an_unknown_path_is_told_those_that_there_are(client: httpx.AsyncClient, path: str, hint: str) -> None:
    reply = await client.post(path, json=CHAT)
    assert reply.status_code == 404
    message = reply.json()["error"]["message"]
    assert hint in message
    assert "/v1/chat/completions, /v1/completions, /v1/embeddings, /v1/messages, " in message
    assert "/v1/messages/count_tokens, /v1/models, /v1/models/{model}" in message
    assert "/admin" not in message


def test_every_status_has_a_type_of_its_own() -> None:
    sources = "".join(path.read_text() for path in Path(errors.__file__).parent.rglob("*.py"))
    statuses = {int(status) for status in re.findall(r"ApiError\(\s*(\d{3})", sources)}
    assert len(statuses) > 10
    for status in statuses:
        assert json.loads(errors.ApiError(status, "x").body())["error"]["type"] != "APIError", status


@pytest.mark.parametrize("path", ["/v1/completions/", "/tokenize/", "/healthz/"])
async def test_a_slash_too_many_is_404_and_no_redirection(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.post(path, json=CHAT)
    assert reply.status_code == 404
    assert f"There is no {path} here." in reply.json()["error"]["message"]
    assert "location" not in reply.headers


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"\xff", b'{"a":"\\ud800"}', b"[" * 4000,
                                  b'{"messages": NaN}'])
async def test_what_is_no_json_object_is_400(client: httpx.AsyncClient, body: bytes) -> None:
    reply = await client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


async def test_a_packed_body_is_refused_by_its_encoding(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    reply = await client.post("/v1/chat/completions", content=gzip.compress(b"{}"), headers=headers)
    assert reply.status_code == 415
    assert "content-encoding 'gzip' is not supported" in reply.json()["error"]["message"]


async def test_only_json_is_taken(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert reply.status_code == 400
    assert "application/json" in reply.json()["error"]["message"]


async def test_bodies_beyond_the_limit_are_413_announced_or_not(client: httpx.AsyncClient) -> None:
    async def pieces() -> Any:
        for _ in range(5):
            yield b" " * 1000

    headers = {"content-type": "application/json"}
    for content in (b" " * 5000, pieces()):
        reply = await client.post("/v1/completions", content=content, headers=headers)
        assert reply.status_code == 413
        assert reply.json()["error"]["code"] == 413


async def test_model_cards_have_every_field_of_vllms(client: httpx.AsyncClient) -> None:
    reply = (await client.get("/v1/models")).json()
    card = reply["data"][0]
    permission = card.pop("permission")[0]
    assert reply["object"] == "list"
    assert [c["id"] for c in reply["data"]] == ["m", "alias"]
    assert card == {"id": "m", "object": "model", "created": 1700000000, "owned_by": "quire", "root": "/models/m",
                    "parent": None, "max_model_len": 100}
    assert permission.pop("id").startswith("modelperm-")
    assert permission == {
        "object": "model_permission", "created": 1700000000, "allow_create_engine": False, "allow_sampling": True,
        "allow_logprobs": True, "allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False,
        "organization": "*", "group": None, "is_blocking": False}
    assert (await client.get("/v1/models/alias")).json()["id"] == "alias"
    assert (await client.get("/v1/models/a/b")).status_code == 404


async def test_what_needs_the_model_waits_for_it(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.state, fake.info = "loading", None
    waiting = await client.get("/v1/models")
    assert waiting.status_code == 503
    assert waiting.headers["retry-after"] == "5"


async def test_requests_are_counted_once(client: httpx.AsyncClient) -> None:
    for _ in range(2):
        await client.post("/v1/chat/completions", json=CHAT | {"n": 2})
    await client.get("/" + "x" * 50)
    text = (await client.get("/metrics")).text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    labels = 'engine="0",model_name="m"'
    assert lines['vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"}'] == "4.0"
    assert lines[f"vllm:time_to_first_token_seconds_count{{{labels}}}"] == "2.0"
    assert lines[f"vllm:inter_token_latency_seconds_count{{{labels}}}"] == "16.0"
    assert lines['http_requests_total{deadline="",handler="/v1/chat/completions",method="POST",status="200"}'] == "2.0"
    assert lines['http_requests_total{deadline="",handler="other",method="GET",status="404"}'] == "1.0"


async def test_tokenize_and_detokenize_are_inverse(client: httpx.AsyncClient) -> None:
    tokens = (await client.post("/tokenize", json={"prompt": "añ"})).json()
    assert tokens == {"count": 2, "max_model_len": 100, "tokens": [97, 241], "token_strs": None}
    assert (await client.post("/detokenize", json={"tokens": tokens["tokens"]})).json() == {"prompt": "añ"}
    assert (await client.post("/detokenize", json={"tokens": [-1]})).status_code == 400
    assert (await client.post("/tokenize", json={})).status_code == 400


class Connection:
    """One HTTP exchange on bare ASGI, whose client can go away."""

    def __init__(self, app: Starlette, body: bytes) -> None:
        self._gone = asyncio.Event()
        self._body: bytes | None = body
        self.sent: list[dict[str, Any]] = []
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
                 "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"", "root_path": "",
                 "headers": [(b"content-type", b"application/json")], "client": None, "server": None}
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    def leave(self) -> None:
        self._gone.set()

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.sent)


async def until(condition: Callable[[], object]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("did not happen")


@pytest.mark.parametrize("stream", [b"true", b"false"])
async def test_a_client_that_goes_away_ends_its_request(make_app: Callable[..., Starlette], fake: FakeEngine,
                                                        stream: bytes) -> None:
    app = make_app()
    async with app.router.lifespan_context(app):
        fake.gate.clear()
        connection = Connection(app, b'{"messages":[{"role":"user","content":"x"}],"stream":' + stream + b"}")
        await until(lambda: fake.streams)
        with capture_logs() as logs:
            connection.leave()
            await connection.task
        assert fake.streams[0].closed
        assert [line["status"] for line in logs if line["event"] == "request"] == [499]
        assert len(app.state.service.in_flight) == 0


async def test_a_drain_is_not_ready_then_ends_what_is_left_with_an_error(make_app: Callable[..., Starlette],
                                                                        fake: FakeEngine) -> None:
    app = make_app(sse_ping_interval=0.05)
    async with app.router.lifespan_context(app):
        service = app.state.service
        fake.gate.clear()
        streaming = Connection(app, b'{"messages":[{"role":"user","content":"x"}],"stream":true}')
        whole = Connection(app, b'{"messages":[{"role":"user","content":"x"}]}')
        await until(lambda: len(fake.streams) == 2 and streaming.sent)
        Path(service.settings.drain_file).write_text(str(time.monotonic() + 0.5))
        await until(lambda: service.in_flight.draining)
        assert not streaming.task.done()
        assert not whole.task.done()
        await asyncio.gather(streaming.task, whole.task)
        assert streaming.sent[0]["status"] == 200
        assert b'data: {"error"' in streaming.body
        assert b"[DONE]" not in streaming.body
        assert streaming.sent[-1]["more_body"] is False
        assert whole.sent[0]["status"] == 503
        assert all(stream.closed for stream in fake.streams)
        late = Connection(app, b"{}")
        await late.task
        assert late.sent[0]["status"] == 503
