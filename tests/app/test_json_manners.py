"""Small liberties of JSON that clients take, and what a refusal says of a value of the wrong type."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.app.fake_engine import FakeEngine

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
PROMPT: dict[str, Any] = {"prompt": "x"}


async def post(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/completions" if "prompt" in body else "/v1/chat/completions", json=body)


async def test_an_integer_may_be_written_with_a_point(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    raw = b'{"prompt":[65.0,66],"max_tokens":4.0,"n":1e0,"seed":7.0,"stop_token_ids":[5.0,6],"logprobs":1.0}'
    reply = await client.post("/v1/completions", content=raw, headers={"content-type": "application/json"})
    assert reply.status_code == 200, reply.text
    prompt, params, _ = fake.submitted[-1]
    assert (prompt, params.max_tokens, params.seed, params.stop_token_ids, params.logprobs) == ([65, 66], 4, 7, [5, 6],
                                                                                               1)
    assert not any(isinstance(value, float) for value in (*prompt, params.max_tokens, params.seed, params.logprobs))
    assert (await post(client, **CHAT, max_tokens=4.5)).status_code == 400


async def test_a_byte_order_mark_is_no_part_of_the_body(client: httpx.AsyncClient) -> None:
    raw = b"\xef\xbb\xbf" + json.dumps(CHAT).encode()
    reply = await client.post("/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("body", [
    PROMPT | {"logprobs": False}, PROMPT | {"stop": ""}, PROMPT | {"best_of": 1}, PROMPT | {"n": 3, "best_of": 3},
    PROMPT | {"stop": [""]}, CHAT | {"stop": []}, CHAT | {"logprobs": False, "top_logprobs": 0},
    CHAT | {"top_logprobs": 0},
])
async def test_what_asks_for_nothing_is_taken(client: httpx.AsyncClient, fake: FakeEngine,
                                              body: dict[str, Any]) -> None:
    reply = await post(client, **body)
    assert reply.status_code == 200, reply.text
    assert all(choice["logprobs"] is None for choice in reply.json()["choices"])
    assert (fake.submitted[-1][1].logprobs, fake.submitted[-1][1].stop) == (None, [])


async def test_samples_of_no_chance_are_equal_ones(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    assert (await post(client, **CHAT, n=2, temperature=0)).status_code == 200
    fake.model_config.generation_defaults = {"temperature": 0.0}
    assert (await post(client, **PROMPT, n=2)).status_code == 200
    assert [(params.n, params.temperature) for _, params, _ in fake.submitted] == [(2, 0), (2, 0)]


@pytest.mark.parametrize(("body", "param", "said"), [
    (CHAT | {"max_tokens": -1}, "max_tokens", "leave it out for as many as the context has room for"),
    (CHAT | {"max_completion_tokens": -1}, "max_completion_tokens", "leave it out for as many"),
    (PROMPT | {"max_tokens": -1}, "max_tokens", "leave it out for 16, or say how many"),
    (PROMPT | {"logprobs": True}, "logprobs", "send 1"),
    (PROMPT | {"n": 2, "best_of": 3}, "best_of", "may only be n, which is 2"),
    (PROMPT | {"n": 2, "best_of": 1}, "best_of", "at least n, which is 2"),
    (PROMPT | {"best_of": 1000}, "best_of", "at most 128 (--max-n)"),
    (CHAT | {"n": "two"}, "n", 'n must be an integer, got "two".'),
    (CHAT | {"n": True}, "n", "n must be an integer, got true."),
    (CHAT | {"temperature": "hot"}, "temperature", 'temperature must be a number, got "hot".'),
    (CHAT | {"top_logprobs": [1]}, "top_logprobs", "top_logprobs must be an integer, got [1]."),
    (CHAT | {"stop": ["a", 5]}, "stop[1]", "stop[1] must be text, got 5."),
    (CHAT | {"stop": {"a": 1}}, "stop", 'stop must be text or a list, got {"a":1}.'),
    (CHAT | {"stop_token_ids": [1, "x" * 200]}, "stop_token_ids[1]", 'must be an integer, got "' + "x" * 59 + "..."),
    (CHAT | {"stop_token_ids": [1.0, 2.5]}, "stop_token_ids[1]", "must be an integer, got 2.5."),
    (CHAT | {"stream": "yes"}, "stream", 'stream must be true or false, got "yes".'),
    (CHAT | {"stream": True, "stream_options": {"include_usage": 2}}, "stream_options.include_usage",
     "must be true or false, got 2."),
    ({"messages": ["hello"]}, "messages[0]", 'messages[0] must be an object, got "hello".'),
    ({"messages": {}}, "messages", "messages must be a list, got {}."),
    (PROMPT | {"logprobs": "x"}, "logprobs", 'logprobs must be true or false or an integer, got "x".'),
    (CHAT | {"n": 10**1000}, "n", "..."),
])
async def test_a_refusal_says_where_what_and_instead_of_what(client: httpx.AsyncClient, body: dict[str, Any],
                                                             param: str, said: str) -> None:
    reply = await post(client, **body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == param
    assert said in error["message"]
    assert len(error["message"]) < 400
