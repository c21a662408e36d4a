from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from starlette.applications import Starlette

from quire.engine.errors import (
    NOTHING_LEFT_TO_DRAW,
    EngineDeadError,
    InvalidRequestError,
    OverloadedError,
    context_length_error,
)
from tests.app.fake_engine import FakeEngine

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


async def post(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json={"messages": MESSAGES, **body})


def events(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block[6:] if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]


async def test_a_reply_has_every_field_that_clients_of_vllm_read(client: httpx.AsyncClient) -> None:
    reply = (await post(client, model="m")).json()
    ChatCompletion.model_validate(reply)
    choice = reply["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Hi 👋!", "refusal": None, "tool_calls": []}
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    assert (choice["stop_reason"], choice["logprobs"]) == (None, None)
    assert reply["object"] == "chat.completion"
    assert reply["id"].startswith("chatcmpl-")
    assert reply["model"] == "m"
    assert reply["usage"] == {"prompt_tokens": 14, "completion_tokens": 5, "total_tokens": 19,
                              "prompt_tokens_details": {"cached_tokens": 3}}
    assert "prompt_logprobs" in reply


async def test_chunks_add_up_to_the_whole_reply(client: httpx.AsyncClient) -> None:
    whole = (await post(client)).json()
    got = events(await post(client, stream=True))
    assert got.pop() == "[DONE]"
    for chunk in got:
        ChatCompletionChunk.model_validate(chunk)
    assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(c["choices"][0]["delta"]["content"] for c in got) == whole["choices"][0]["message"]["content"]
    assert [c["choices"][0]["finish_reason"] for c in got] == [None] * 5 + ["stop"]
    assert "stop_reason" in got[-1]["choices"][0]
    assert len({c["id"] for c in got}) == 1
    assert not any("usage" in c for c in got)


async def test_usage_comes_last_when_asked_for(client: httpx.AsyncClient) -> None:
    got = events(await post(client, stream=True, stream_options={"include_usage": True}))
    assert got[-2]["choices"] == []
    assert got[-2]["usage"]["completion_tokens"] == 5
    assert all(c["usage"] is None for c in got[:-2]), "as OpenAI's chunks"
    running = events(await post(client, stream=True, stream_options={"include_usage": True,
                                                                     "continuous_usage_stats": True}))
    assert [c["usage"]["completion_tokens"] for c in running[:-1]] == [1, 1, 2, 3, 4, 5, 5]


async def test_each_of_n_choices_is_whole(client: httpx.AsyncClient) -> None:
    reply = (await post(client, n=3)).json()
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2]
    assert reply["usage"]["completion_tokens"] == 15
    got = events(await post(client, n=3, stream=True))[:-1]
    for index in range(3):
        mine = [c["choices"][0] for c in got if c["choices"][0]["index"] == index]
        assert mine[0]["delta"].get("role") == "assistant"
        assert "".join(c["delta"]["content"] for c in mine) == "Hi 👋!"


async def test_choices_are_opened_in_order_whichever_speaks_first(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.backwards = True
    got = events(await post(client, n=3, stream=True, stream_options={"include_usage": True}))
    assert [c["choices"][0]["index"] for c in got[:4]] == [0, 1, 2, 2]
    assert [c["choices"][0]["delta"] for c in got[:3]] == [{"role": "assistant", "content": ""}] * 3
    assert not any("role" in c["choices"][0]["delta"] for c in got[3:-2])
    sdk = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=client)
    async with sdk.chat.completions.stream(model="m", messages=MESSAGES, n=3) as stream:  # type: ignore[arg-type]
        whole = await stream.get_final_completion()
    assert [(c.index, c.message.content) for c in whole.choices] == [(i, "Hi 👋!") for i in range(3)]


async def test_logprobs_give_text_bytes_and_alternatives(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    reply = (await post(client, logprobs=True, top_logprobs=2)).json()
    ChatCompletion.model_validate(reply)
    tokens = reply["choices"][0]["logprobs"]["content"]
    assert "".join(t["token"] for t in tokens) == "Hi 👋!"
    assert bytes(b for t in tokens for b in t["bytes"]).decode() == "Hi 👋!"
    assert tokens[0]["top_logprobs"][1]["logprob"] == -9999.0, "JSON has no -inf"
    assert fake.submitted[-1][1].logprobs == 2
    streamed = events(await post(client, logprobs=True, stream=True))[:-1]
    assert [c["choices"][0]["logprobs"]["content"][0]["token"] for c in streamed[1:]] == list("Hi 👋!")


async def test_parameters_reach_the_engine(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    await post(client, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, seed=3, stop=["x"], max_completion_tokens=4,
               presence_penalty=1, frequency_penalty=-1, repetition_penalty=1.1, min_tokens=1, ignore_eos=True,
               priority=-2, cache_salt="s", user="u", metadata={"a": "b"}, store=False, n=1)
    _, params, extra = fake.submitted[-1]
    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.seed) == (0.5, 0.9, 7, 0.1, 3)
    assert (params.stop, params.max_tokens, params.min_tokens, params.ignore_eos) == (["x"], 4, 1, True)
    assert (extra["priority"], extra["cache_salt"], extra["add_special_tokens"]) == (-2, "s", False)


async def test_without_max_tokens_the_rest_of_the_context_is_asked_for(client: httpx.AsyncClient,
                                                                      fake: FakeEngine) -> None:
    await post(client, max_tokens=None)
    assert fake.submitted[-1][1].max_tokens is None


async def test_the_clients_value_wins_over_the_models_default(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.model_config.generation_defaults = {"temperature": 0.3, "top_k": 5, "do_sample": True}
    await post(client, top_k=9)
    params = fake.submitted[-1][1]
    assert (params.temperature, params.top_k) == (0.3, 9)


async def test_text_parts_reach_the_template_and_images_are_refused_by_name(client: httpx.AsyncClient,
                                                                           fake: FakeEngine) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert (await post(client, messages=[{"role": "user", "content": parts}])).status_code == 200
    assert fake.chat_template.seen[-1][0] == [{"role": "user", "content": parts}]
    image = [{"type": "image_url", "image_url": {"url": "data:"}}]
    reply = await post(client, messages=[{"role": "user", "content": "x"}, {"role": "user", "content": image}])
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "messages[1].content[0]"
    assert "image_url" in reply.json()["error"]["message"]


async def test_an_assistant_message_as_the_sdk_returns_it_can_be_sent_back(client: httpx.AsyncClient) -> None:
    said = (await post(client)).json()["choices"][0]["message"] | {"audio": None, "function_call": None}
    assert (await post(client, messages=[*MESSAGES, said, {"role": "user", "content": "and?"}])).status_code == 200


@pytest.mark.parametrize(("said", "shown"), [
    ({"content": None}, ""),
    ({}, ""),
    ({"content": None, "refusal": "No."}, "No."),
    ({"refusal": "No.", "content": ""}, "No."),
    ({"content": "Yes.", "refusal": None, "audio": None, "function_call": None, "tool_calls": None}, "Yes."),
    ({"content": "Yes.", "tool_calls": [], "annotations": []}, "Yes."),
    ({"content": [{"type": "refusal", "refusal": "No."}]}, [{"type": "text", "text": "No."}]),
    ({"content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]},
     [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
])
async def test_whatever_an_assistant_may_have_said_can_be_sent_back(client: httpx.AsyncClient, fake: FakeEngine,
                                                                    said: dict[str, Any], shown: Any) -> None:
    messages = [*MESSAGES, {"role": "assistant", "name": "bot", **said}, MESSAGES[1]]
    reply = await post(client, messages=messages)
    assert reply.status_code == 200, reply.text
    assert fake.chat_template.seen[-1][0][2] == {"role": "assistant", "name": "bot", "content": shown}
    assert "warning" not in reply.headers
    assert (await client.post("/tokenize", json={"messages": messages})).status_code == 200


@pytest.mark.parametrize(("message", "param", "words"), [
    ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, "tool_calls[0]", "function"),
    ({"role": "assistant", "function_call": {"name": "f"}}, "function_call", "not supported"),
    ({"role": "assistant", "audio": {"id": "1"}}, "audio", "not supported"),
    ({"role": "function", "content": "x", "name": "f"}, "role", "send the role 'tool'"),
    ({"role": "tool", "content": "x", "tool_call_id": 1}, "tool_call_id", "must be text, got 1"),
    ({"role": "assistant", "refusal": 1}, "refusal", "must be text"),
    ({"role": "user", "content": None}, "content", "must be text"),
    ({"role": "user", "content": [{"type": "refusal", "refusal": "No."}]}, "content[0]", "'refusal' are not supported"),
    ({"role": "assistant", "content": [{"type": "refusal"}]}, "content[0].refusal", "must be text"),
    ({"role": "user", "content": "x", "name": 5}, "name", "must be text"),
])
async def test_what_a_message_may_not_hold_is_named(client: httpx.AsyncClient, message: dict[str, Any], param: str,
                                                    words: str) -> None:
    reply = await post(client, messages=[message])
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == f"messages[0].{param}"
    assert words in reply.json()["error"]["message"]


async def test_a_templates_refusal_is_the_clients_to_read(client: httpx.AsyncClient) -> None:
    reply = await post(client, chat_template_kwargs={"no_system": True})
    assert reply.status_code == 400
    assert reply.json()["error"] == {"message": "System role not supported", "type": "BadRequestError",
                                     "param": "messages", "code": 400}


@pytest.mark.parametrize(("body", "param"), [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "tool", "content": None, "tool_call_id": "1"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
    ({"messages": "x"}, "messages"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
    ({"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
    ({"tools": [{"function": {"name": "f"}}] * 2}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "any", "tools": [{"function": {"name": "f"}}]}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [{"function": {"name": "f"}}]},
     "tool_choice"),
    ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ({"response_format": {"type": "json"}}, "response_format"),
    ({"logit_bias": {"one": 1}}, "logit_bias"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"bad_words": [" "]}, "bad_words"),
    ({"bad_words": ["x"] * 129}, "bad_words"),
    ({"functions": [{}]}, "functions"),
    ({"guided_json": "{"}, "guided_json"),
    ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"nonsense": 1}, "nonsense"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"n": 0}, "n"),
    ({"n": True}, "n"),
    ({"n": 10**30}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 0, "max_tokens": 5}, "max_completion_tokens"),
    ({"length_penalty": 2}, "length_penalty"),
    ({"length_penalty": True}, "length_penalty"),
    ({"early_stopping": 0}, "early_stopping"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "language": "en"}]}]},
     "messages[0].content[0].language"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"stop": [1]}, "stop[0]"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"priority": 2**40}, "priority"),
])
async def test_what_cannot_be_served_is_refused_by_name(client: httpx.AsyncClient, fake: FakeEngine,
                                                        body: dict[str, Any], param: str) -> None:
    reply = await post(client, **body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
    assert not fake.submitted


async def test_neutral_values_of_unsupported_fields_are_harmless(client: httpx.AsyncClient) -> None:
    reply = await post(client, tools=None, tool_choice="none", response_format={"type": "text"}, logit_bias={},
                       parallel_tool_calls=True, service_tier="auto", n=1, functions=[])
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("body", [{"length_penalty": 1}, {"length_penalty": 1.0}, {"best_of": 1.0}])
async def test_a_neutral_number_is_one_in_either_form(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    reply = await post(client, **body)
    assert reply.status_code == 200, reply.text


async def test_fields_of_a_text_part_that_say_nothing_are_harmless(client: httpx.AsyncClient) -> None:
    part = {"type": "text", "text": "x", "annotations": [], "cache_control": {"type": "ephemeral"}, "language": None}
    reply = await post(client, messages=[{"role": "user", "content": [part]}])
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("sent", ["max_tokens", "max_completion_tokens"])
async def test_a_refusal_names_the_field_that_the_client_sent(client: httpx.AsyncClient, fake: FakeEngine,
                                                              sent: str) -> None:
    other = ({"max_tokens", "max_completion_tokens"} - {sent}).pop()
    fake.refuse = context_length_error(100, 5, 200)
    too_long = (await post(client, **{sent: 200})).json()["error"]
    less_than_least = (await post(client, **{sent: 2, "min_tokens": 3})).json()["error"]
    assert too_long["param"] == sent
    assert less_than_least["param"] == "min_tokens"
    for error in (too_long, less_than_least):
        words = re.findall(r"\w+", error["message"])
        assert sent in words
        assert other not in words


async def test_an_unknown_model_is_404_and_an_alias_is_not(client: httpx.AsyncClient) -> None:
    reply = await post(client, model="gpt-4")
    assert reply.status_code == 404
    assert reply.json()["error"]["param"] == "model"
    assert "`gpt-4` does not exist" in reply.json()["error"]["message"]
    assert (await post(client, model="alias")).json()["model"] == "alias"


@pytest.mark.parametrize(("error", "status", "retry_after"), [
    (InvalidRequestError("too long", "prompt"), 400, None),
    (OverloadedError("full", 1.5), 503, "2"),
    (OverloadedError("slow down", 7, own_limit=True), 429, "7"),
    (EngineDeadError("gone"), 503, None),
])
async def test_refusals_of_the_engine_have_their_status(client: httpx.AsyncClient, fake: FakeEngine, error: Exception,
                                                        status: int, retry_after: str | None) -> None:
    fake.refuse = error
    for stream in (False, True):
        reply = await post(client, stream=stream)
        assert reply.status_code == status
        assert reply.headers.get("retry-after") == retry_after
        assert reply.json()["error"]["code"] == status


async def test_a_failure_midway_ends_the_stream_with_an_error_that_tells_nothing(client: httpx.AsyncClient,
                                                                                fake: FakeEngine) -> None:
    fake.fails_after = 2
    got = events(await post(client, stream=True))
    assert got[-1] == "[DONE]"
    assert got[-2]["error"]["code"] == 500
    assert "secret" not in got[-2]["error"]["message"]
    assert fake.streams[-1].closed
    reply = await post(client)
    assert reply.status_code == 500
    assert "secret" not in reply.text


async def test_a_sample_that_has_nothing_left_to_draw_is_an_error_that_says_so(client: httpx.AsyncClient,
                                                                               fake: FakeEngine) -> None:
    fake.finish_reason, fake.stop_reason = "error", NOTHING_LEFT_TO_DRAW
    reply = await post(client)
    assert (reply.status_code, reply.json()["error"]["message"]) == (400, NOTHING_LEFT_TO_DRAW)
    error = events(await post(client, stream=True))[-2]["error"]
    assert (error["code"], error["message"]) == (400, NOTHING_LEFT_TO_DRAW)


async def test_what_asks_for_tokens_reaches_the_engine(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    assert (await post(client, logit_bias={"65": 300, "66": -1}, allowed_token_ids=[65, 66, 65],
                       bad_words=["x"])).status_code == 200
    _, params, _ = fake.submitted[-1]
    assert (params.logit_bias, params.allowed_token_ids, params.bad_words) == ({65: 100.0, 66: -1.0}, [65, 66], ["x"])


@pytest.mark.parametrize(("content", "off_the_loop"), [
    ("x" * 5000, True), ([{"type": "text", "text": "x" * 5000}], True), ([{"type": "text", "text": "x"}], False)])
async def test_a_long_conversation_is_rendered_off_the_loop(
        make_app: Callable[..., Starlette], fake: FakeEngine, content: Any, off_the_loop: bool,
        monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    render = fake.chat_template.render

    def noting(*args: Any, **kwargs: Any) -> str:
        threads.append(threading.current_thread())
        return render(*args, **kwargs)

    monkeypatch.setattr(fake.chat_template, "render", noting)
    app = make_app(max_body_bytes=10**5)
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})
    assert [thread is not threading.main_thread() for thread in threads] == [off_the_loop]
