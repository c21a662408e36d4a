"""What becomes of fields that the server does not have: refused with a hint, or passed over and named in a header."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from tests.app.fake_engine import FakeEngine

MESSAGES = [{"role": "user", "content": "x"}]


@pytest.fixture
async def lenient(make_app: Callable[..., Starlette]) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(unknown_fields="warn", max_body_bytes=10**6)
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


async def post(client: httpx.AsyncClient, path: str = "chat/completions", **body: Any) -> httpx.Response:
    needed: dict[str, Any] = {"messages": MESSAGES} if path.startswith("chat") else {"prompt": "x"}
    return await client.post(f"/v1/{path}", json=needed | body)


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_clients_note_for_themselves_is_taken_and_named(client: httpx.AsyncClient, path: str,
                                                                   stream: bool) -> None:
    reply = await post(client, path, chat_id="a", keep_alive="5m", verbosity="low", user="u", stream=stream)
    assert reply.status_code == 200, reply.text
    assert reply.headers["warning"] == '199 quire "fields ignored: chat_id, keep_alive, verbosity"'
    assert "warning" not in (await post(client, path, user="u", metadata={"a": "b"})).headers


async def test_what_is_empty_asks_for_nothing(client: httpx.AsyncClient) -> None:
    reply = await post(client, files=[], tool_ids=[], options={}, mood="", nothing=None)
    assert reply.status_code == 200, reply.text
    assert reply.headers["warning"] == '199 quire "fields ignored: files, tool_ids, options, mood"'
    assert (await post(client, think=False)).status_code == 400, "may mean something"


async def test_in_messages_too_however_many_they_are(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    messages = [{"role": "user", "content": "x", "id": str(i), "timestamp": i + 1} for i in range(30)]
    reply = await post(client, messages=messages)
    assert reply.status_code == 200, reply.text
    assert reply.headers["warning"] == '199 quire "fields ignored: messages[].id, messages[].timestamp"'
    assert fake.chat_template.seen[-1][0] == [{"role": "user", "content": "x"}] * 30


@pytest.mark.parametrize(("path", "body", "param", "said"), [
    ("chat/completions", {"temprature": 1}, "temprature", "did you mean 'temperature'?"),
    ("chat/completions", {"max_token": 1}, "max_token", "did you mean 'max_tokens'?"),
    ("chat/completions", {"repeat_penalty": 1.1}, "repeat_penalty", "did you mean 'repetition_penalty'?"),
    ("completions", {"max_completion_tokens": 5}, "max_completion_tokens", "did you mean 'max_tokens'?"),
    ("completions", {"num_predict": 5}, "num_predict", "did you mean 'max_tokens'?"),
    ("completions", {"num_beams": 2}, "num_beams", "did you mean 'best_of'?"),
    ("completions", {"batch_invariant": True}, "batch_invariant", "start it with --batch-invariant"),
    ("chat/completions", {"zzz": 1}, "zzz", "There is no request field 'zzz'."),
    ("chat/completions", {"prompt": "x"}, "prompt", "/v1/completions"),
    ("completions", {"messages": MESSAGES}, "messages", "/v1/chat/completions"),
    ("chat/completions", {"enable_thinking": False}, "enable_thinking", "chat_template_kwargs"),
    ("chat/completions", {"extra_body": {"top_k": 1}}, "extra_body", "beside the others"),
    ("chat/completions", {"messages": [{"role": "user", "content": "x", "nmae": "y"}]}, "messages[0].nmae",
     "did you mean 'name'?"),
    ("chat/completions", {"stream": True, "stream_options": {"include_usag": True}}, "stream_options.include_usag",
     "did you mean 'include_usage'?"),
])
async def test_a_field_that_there_is_not_is_refused_with_what_may_be_meant(
        client: httpx.AsyncClient, fake: FakeEngine, path: str, body: dict[str, Any], param: str, said: str) -> None:
    reply = await post(client, path, **body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
    assert said in reply.json()["error"]["message"]
    assert not fake.submitted


async def test_a_missing_field_is_told_where_the_others_belong(lenient: httpx.AsyncClient) -> None:
    for path, body, endpoint in (("chat/completions", {"prompt": "x"}, "/v1/completions"),
                                 ("completions", {"messages": MESSAGES}, "/v1/chat/completions")):
        reply = await lenient.post(f"/v1/{path}", json=body)
        assert reply.status_code == 400
        assert endpoint in reply.json()["error"]["message"]


async def test_with_warn_all_that_is_unknown_is_taken(lenient: httpx.AsyncClient, fake: FakeEngine) -> None:
    part = {"type": "text", "text": "x", "colour": "red"}
    reply = await post(lenient, temprature=1, nonsense={"a": 1}, stream=True, stream_options={"chunk": 1},
                       messages=[{"role": "user", "content": [part], "mood": "good"}])
    assert reply.status_code == 200, reply.text
    assert reply.headers["warning"] == ('199 quire "fields ignored: temprature, nonsense, stream_options.chunk, '
                                        'messages[].content[].colour, messages[].mood"')
    assert len(fake.submitted) == 1
    known = await post(lenient, tools=[{"type": "function"}])
    assert known.status_code == 400, "known, and it would change the reply"


async def test_the_header_is_short_and_harmless_whatever_is_sent(lenient: httpx.AsyncClient) -> None:
    names = {"a\r\nset-cookie: x": 1, 'q"': 1, "ü": 1, "\x1b[31m": 1} | {f"{i}" * 5000: 1 for i in range(100)}
    reply = await post(lenient, **names)
    assert reply.status_code == 200
    value = reply.headers["warning"]
    assert len(value) < 2500
    assert value.startswith('199 quire "fields ignored: a??set-cookie??x, q?, ?, ?[31m, ')
    assert value.endswith(' more"')
    assert "set-cookie" not in reply.headers
