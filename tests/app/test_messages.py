"""Anthropic's API over HTTP, for their SDK and a coding agent: what is asked of the engine, and what is told of it."""

from __future__ import annotations

import copy
import json
import operator
import random
from collections.abc import AsyncIterator, Callable, Iterator
from functools import reduce
from typing import Any

import anthropic
import httpx2
import msgspec
import pytest
from pydantic import BaseModel
from starlette.applications import Starlette

from quire.app.anthropic_errors import PATHS
from quire.app.endpoints.messages import MessageStream
from quire.app.errors import ApiError
from quire.app.routes import ROUTES
from quire.app.schemas.blocks import conversation_of
from quire.app.schemas.media import SentImages
from quire.app.schemas.raw import NULL
from quire.app.schemas.unknown import UnknownFields
from quire.engine.errors import InvalidRequestError, OverloadedError, context_length_error
from tests.app import coding_agent
from tests.app.fake_engine import FakeEngine
from tests.app.test_streams import Wire, of, run

ASK: list[Any] = [{"role": "user", "content": "Hello"}]
TOOLS: list[Any] = [{"name": "weather", "description": "Of a city.", "input_schema": {
    "type": "object", "properties": {"city": {"type": "string"}}}}, {"name": "now", "input_schema": {"type": "object"}}]
CALLS = ('I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>\n'
         '<tool_call>\n{"name": "now"}\n</tool_call>')
THOUGHT = "<think>Hm, so.</think>\n\nYes"


@pytest.fixture
async def http(make_app: Callable[..., Starlette]) -> AsyncIterator[httpx2.AsyncClient]:
    app = make_app(max_body_bytes=10**5)
    async with app.router.lifespan_context(app), httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="http://localhost") as client:
        yield client


@pytest.fixture
def sdk(http: httpx2.AsyncClient) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(api_key="none", base_url="http://localhost", http_client=http, max_retries=0)


async def post(http: httpx2.AsyncClient, status: int = 200, **body: Any) -> Any:
    reply = await http.post("/v1/messages", json={"messages": ASK, "max_tokens": 1000, **body})
    assert reply.status_code == status, reply.text
    return reply.json()


async def events(http: httpx2.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    reply = await http.post("/v1/messages", json={"messages": ASK, "max_tokens": 1000, "stream": True, **body})
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = []
    for frame in reply.text.removesuffix("\n\n").split("\n\n"):
        name, data = frame.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


async def test_a_reply_is_a_message(http: httpx2.AsyncClient) -> None:
    reply = await http.post("/v1/messages", json={"model": "alias", "messages": ASK, "max_tokens": 50})
    message = reply.json()
    assert message.pop("id") == f"msg_{reply.headers['x-request-id']}"
    assert reply.headers["request-id"] == reply.headers["x-request-id"]
    assert message == {
        "type": "message", "role": "assistant", "model": "alias", "content": [{"type": "text", "text": "Hi 👋!"}],
        "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 2, "output_tokens": 5, "cache_read_input_tokens": 3,
                  "cache_creation_input_tokens": 0}}


async def test_a_stream_has_anthropic_s_events(http: httpx2.AsyncClient, fake: FakeEngine) -> None:
    fake.text = CALLS
    found = await events(http, tools=TOOLS)
    kinds = [event["type"] for event in found]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    start, end = found[0]["message"], found[-2]
    assert (start["role"], start["content"], start["stop_reason"]) == ("assistant", [], None)
    assert start["usage"]["input_tokens"] == end["usage"]["input_tokens"] > 0
    assert end["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert end["usage"]["output_tokens"] == len(CALLS) > start["usage"]["output_tokens"]
    blocks = [event for event in found if event["type"] == "content_block_start"]
    assert [(block["index"], block["content_block"]["type"]) for block in blocks] == [
        (0, "text"), (1, "tool_use"), (2, "tool_use")]
    assert blocks[1]["content_block"]["input"] == {}
    is_open = -1
    for event in found[1:-2]:
        if event["type"] == "content_block_start":
            assert is_open == -1
            is_open = event["index"]
        assert event["index"] == is_open
        is_open = -1 if event["type"] == "content_block_stop" else is_open
    assert is_open == -1


@pytest.mark.parametrize(("text", "body"), [
    ("Hi 👋!", {}), (CALLS, {"tools": TOOLS}), (THOUGHT, {}), ("", {}),
    (THOUGHT, {"thinking": {"type": "adaptive", "display": "omitted"}}),
    ("<think>Hm.</think>" + CALLS, {"tools": TOOLS, "thinking": {"type": "disabled"}}),
    ("<think>Hm.</think>" + CALLS, {"tools": TOOLS, "thinking": {"type": "enabled", "budget_tokens": 1024}}),
    (CALLS[:60], {"tools": TOOLS}),
])
async def test_a_stream_adds_up_to_the_whole(sdk: anthropic.AsyncAnthropic, fake: FakeEngine, text: str, body: Any,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake.chat_template, "source", "<think></think><tool_call>", raising=False)
    fake.text = text or " "
    whole = await sdk.messages.create(model="m", messages=ASK, max_tokens=1000, **body)
    async with sdk.messages.stream(model="m", messages=ASK, max_tokens=1000, **body) as stream:
        streamed = await stream.get_final_message()

    def shown(message: Any) -> Any:
        shown = message.model_dump(exclude={"id"})
        for block in shown["content"]:
            block.pop("parsed_output", None)
            assert block.pop("id", "toolu_").startswith("toolu_")
        return shown

    assert shown(streamed) == shown(whole)


async def test_thoughts_have_blocks_and_signatures(http: httpx2.AsyncClient, fake: FakeEngine,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake.chat_template, "source", "<think></think>", raising=False)
    fake.text = THOUGHT
    reply = await post(http)
    assert reply["usage"]["output_tokens_details"] == {"thinking_tokens": len("Hm, so.</think>")}
    thought, said = reply["content"]
    assert (thought["type"], thought["thinking"], len(thought["signature"])) == ("thinking", "Hm, so.", 64)
    assert said == {"type": "text", "text": "Yes"}
    deltas = [event["delta"]["type"] for event in await events(http) if event["type"] == "content_block_delta"]
    assert list(dict.fromkeys(deltas)) == ["thinking_delta", "signature_delta", "text_delta"]
    [_, [_, variables]] = fake.chat_template.seen[-2:]
    assert "enable_thinking" not in variables, "the template knows best what its model does unasked"
    hidden = await post(http, thinking={"type": "disabled"})
    assert hidden["content"] == [said]
    variables = fake.chat_template.seen[-1][1]
    assert (variables["enable_thinking"], variables["thinking"]) == (False, False)
    await post(http, thinking={"type": "enabled", "budget_tokens": 2000}, output_config={"effort": "low"},
               chat_template_kwargs={"thinking": "hard"})
    variables = fake.chat_template.seen[-1][1]
    assert (variables["enable_thinking"], variables["thinking"], variables["reasoning_effort"]) == (True, "hard", "low")


@pytest.mark.parametrize(("body", "is_bound"), [
    ({}, True), ({"tools": TOOLS, "tool_choice": {"type": "none"}}, True), ({"tools": TOOLS}, False),
    ({"tools": TOOLS, "tool_choice": {"type": "any"}}, True), ({"tools": [TOOLS[0] | {"strict": True}]}, True),
    ({"tools": TOOLS, "output_config": {"format": {"type": "json_schema", "schema": {}}}}, True),
])
async def test_thinking_is_bound_but_where_tools_would_have_no_form(http: httpx2.AsyncClient, fake: FakeEngine,
                                                                   monkeypatch: pytest.MonkeyPatch, body: Any,
                                                                   is_bound: bool) -> None:
    monkeypatch.setattr(fake.chat_template, "source", "<think></think>", raising=False)
    await post(http, thinking={"type": "enabled", "budget_tokens": 1500}, **body)
    form = fake.submitted[-1][1].structured_outputs
    assert ("'max_tokens': 1500" in str(form)) is is_bound and (form is not None) is is_bound


@pytest.mark.parametrize(("finish", "matched", "max_tokens", "stop_reason"), [
    ("stop", None, 50, "end_turn"), ("stop", "###", 50, "stop_sequence"), ("length", None, 5, "max_tokens"),
    ("length", None, 6, "model_context_window_exceeded"),
])
async def test_why_it_stops(http: httpx2.AsyncClient, fake: FakeEngine, finish: str, matched: str | None,
                            max_tokens: int, stop_reason: str) -> None:
    fake.finish_reason, fake.stop_reason = finish, matched
    body: Any = {"max_tokens": max_tokens, "stop_sequences": ["###"]}
    reply = await post(http, **body)
    assert (reply["stop_reason"], reply["stop_sequence"]) == (stop_reason, matched)
    assert (await events(http, **body))[-2]["delta"] == {"stop_reason": stop_reason, "stop_sequence": matched}
    assert fake.submitted[-1][1].stop == ["###"]


@pytest.mark.parametrize(("choice", "names", "several"), [
    ({"type": "any"}, ["weather", "now"], True), ({"type": "tool", "name": "now"}, ["now"], False),
    ({"type": "any", "disable_parallel_tool_use": True}, ["weather", "now"], False),
])
async def test_what_must_be_called_is_a_form(http: httpx2.AsyncClient, fake: FakeEngine, choice: Any, names: list[str],
                                             several: bool) -> None:
    fake.text = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    reply = await post(http, tools=TOOLS, tool_choice=choice)
    assert reply["stop_reason"] == "tool_use"
    assert [block["type"] for block in reply["content"]] == ["tool_use"]
    form = fake.submitted[-1][1].structured_outputs.structural_tag["format"]
    assert [tag["begin"].split('"')[3] for tag in form["tags"]] == names
    assert form["stop_after_first"] is not several
    assert fake.chat_template.seen[-1][1]["tools"][0] == {"type": "function", "function": {
        "name": "weather", "description": "Of a city.", "parameters": TOOLS[0]["input_schema"]}}


async def test_tools_may_be_strict_or_not_be_used(http: httpx2.AsyncClient, fake: FakeEngine) -> None:
    await post(http, tools=[TOOLS[0] | {"strict": True}])
    assert fake.submitted[-1][1].structured_outputs.structural_tag["format"]["type"] == "triggered_tags"
    fake.text = CALLS
    reply = await post(http, tools=TOOLS, tool_choice={"type": "none"})
    assert reply["content"] == [{"type": "text", "text": CALLS}]
    assert fake.chat_template.seen[-1][1]["tools"] is None


class Person(BaseModel):
    name: str


async def test_a_begun_answer_is_gone_on_with(http: httpx2.AsyncClient, fake: FakeEngine) -> None:
    await post(http, messages=[*ASK, {"role": "assistant", "content": "The best answer is ("}])
    variables = fake.chat_template.seen[-1][1]
    assert (variables["continue_final_message"], variables["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize("content", ["", [], [{"type": "text", "text": ""}],
                                     [{"type": "thinking", "thinking": "Hm", "signature": ""}]])
async def test_an_answer_without_a_word_is_not_begun(http: httpx2.AsyncClient, fake: FakeEngine, content: Any) -> None:
    await post(http, messages=[*ASK, {"role": "assistant", "content": content}])
    [(messages, variables)] = fake.chat_template.seen[-1:]
    assert messages == ASK and variables["add_generation_prompt"] and "continue_final_message" not in variables


async def test_a_form_is_heeded(sdk: anthropic.AsyncAnthropic, fake: FakeEngine) -> None:
    fake.text = '{"name": "Ada"}'
    reply = await sdk.messages.parse(model="m", messages=ASK, max_tokens=50, output_format=Person)
    assert reply.parsed_output == Person(name="Ada")
    assert fake.submitted[-1][1].structured_outputs.json["properties"]["name"]["type"] == "string"


async def test_blocks_become_what_templates_know(http: httpx2.AsyncClient, fake: FakeEngine,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake.chat_template, "source", "{% for tool in tools %}<tool_call>{% endfor %}", raising=False)
    await post(http, system="Be brief.", messages=[
        {"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]},
        *coding_agent.MESSAGES[1:], {"role": "system", "content": "Hurry."}, {"role": "user", "content": []}])
    assert fake.chat_template.seen[-1][0] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "I look at both.", "reasoning": "I should look.",
         "reasoning_content": "I should look.", "tool_calls": [
             {"id": "01A", "type": "function", "function": {"name": "Read", "arguments": {"file_path": "/src/a.py"}}},
             {"id": "01B", "type": "function", "function": {
                 "name": "Shell", "arguments": {"command": "pytest -q", "description": "Run the tests"}}}]},
        {"role": "tool", "tool_call_id": "01A", "name": "Read", "content": "1  x = 1\n2  y = x"},
        {"role": "tool", "tool_call_id": "01B", "name": "Shell", "content": "Error: 1 failed"},
        {"role": "user", "content": "<reminder>Nobody has a plan yet.</reminder>"},
        {"role": "system", "content": "Hurry."}, {"role": "user", "content": ""}]


async def test_a_template_without_tools_sees_roles_alternate(http: httpx2.AsyncClient, fake: FakeEngine) -> None:
    await post(http, messages=coding_agent.MESSAGES, tools=TOOLS)
    told = fake.chat_template.seen[-1][0]
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert told[2]["content"].startswith('I look at both.\n<tool_call>\n{"name": "Read", "arguments": {"file_path"')
    assert told[3] == {"role": "user", "content": (
        "<tool_response>\n1  x = 1\n2  y = x\n</tool_response>\n<tool_response>\nError: 1 failed\n</tool_response>\n"
        "<reminder>Nobody has a plan yet.</reminder>")}


async def test_what_was_said_can_be_sent_back(sdk: anthropic.AsyncAnthropic, fake: FakeEngine,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake.chat_template, "source", "<think></think><tool_call>{{ tools }}", raising=False)
    fake.text = "<think>Hm.</think>" + CALLS
    reply = await sdk.messages.create(model="m", messages=ASK, max_tokens=1000, tools=TOOLS)
    results: list[Any] = [{"type": "tool_result", "tool_use_id": block.id} for block in reply.content
                          if block.type == "tool_use"]
    await sdk.messages.create(model="m", max_tokens=1000, tools=TOOLS, messages=[
        *ASK, reply.to_param(), {"role": "user", "content": results}])
    _, said, first, second = fake.chat_template.seen[-1][0]
    assert (said["content"], said["reasoning"]) == ("I look.", "Hm.")
    assert [call["id"] for call in said["tool_calls"]] == [first["tool_call_id"], second["tool_call_id"]]
    assert first["tool_call_id"].startswith("call_"), "as the model's syntax has it"


async def test_a_coding_agent_is_answered(http: httpx2.AsyncClient, fake: FakeEngine,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake.chat_template, "source", "{{ tools }}<think></think><tool_call>", raising=False)
    fake.text = 'So.</think>\n<tool_call>\n{"name": "Read", "arguments": {"file_path": "/src/b.py"}}\n</tool_call>'
    monkeypatch.setattr(fake.chat_template, "render", _rendering(fake, "<think>\n"))
    reply = await http.post("/v1/messages?beta=true", json=coding_agent.REQUEST, headers=coding_agent.HEADERS)
    assert reply.status_code == 200, reply.text
    assert reply.headers["warning"] == '199 quire "fields ignored: context_hint"'
    found = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: ")]
    assert [event["content_block"]["type"] for event in found if event["type"] == "content_block_start"] == [
        "thinking", "tool_use"]
    assert found[-2]["delta"]["stop_reason"] == "tool_use"
    messages, variables = fake.chat_template.seen[-1]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "tool", "user"]
    system = [part["text"] for part in messages[0]["content"]]
    assert system == [block["text"] for block in coding_agent.SYSTEM[1:]], "what names the request is in no cache"
    assert [tool["function"]["name"] for tool in variables["tools"]] == [t["name"] for t in coding_agent.TOOLS]
    assert len(variables["tools"]) == 20
    [(_, params, options)] = fake.submitted
    assert (params.max_tokens, params.structured_outputs, options["clamp"]) == (32_000, None, True)
    counted = {name: coding_agent.REQUEST[name] for name in ("model", "system", "messages", "tools", "thinking")}
    reply = await http.post("/v1/messages/count_tokens?beta=true", json=counted, headers=coding_agent.HEADERS)
    usage = found[-2]["usage"]
    assert reply.json() == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}


def _rendering(fake: FakeEngine, end: str) -> Callable[..., str]:
    def render(messages: Any, **variables: Any) -> str:
        fake.chat_template.seen.append((messages, variables))
        return json.dumps([messages, variables["tools"]]) + end

    return render


async def test_tokens_are_counted_as_they_are_taken(sdk: anthropic.AsyncAnthropic, fake: FakeEngine) -> None:
    body: Any = {"model": "m", "system": "Be brief.", "messages": ASK, "tools": TOOLS}
    count = await sdk.messages.count_tokens(**body)
    usage = (await sdk.messages.create(max_tokens=50, **body)).usage
    assert count.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert len(fake.submitted) == 1, "nothing is generated to count"


PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aWE="}}


@pytest.mark.parametrize(("body", "said"), [
    ({"max_tokens": None}, "The field max_tokens is missing."),
    ({"max_tokens": 0}, "max_tokens must be at least 1, got 0."),
    ({"messages": []}, "messages must hold at least one message."),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role must be one of user, system, assistant"),
    ({"messages": [{"role": "user"}]}, "messages[0].content must be text or a list of blocks, got null."),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, PNG]}]},
     "messages[0].content[1]: this model takes text only; blocks of type 'image' are not supported."),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [PNG]}]}]},
     "messages[0].content[0].content[0]: this model takes text only"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]},
     "messages[0].content[0].text must be text, got 7."),
    ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]},
     "messages[0].content[0].type is 'tool_use'; here it must be 'text' or 'image' or 'tool_result'."),
    ({"messages": [*ASK, {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {}}]}]},
     "messages[1].content[0]: Object missing required field `id`."),
    ({"messages": [{"role": "user", "content": ["x"]}]}, 'messages[0].content[0] must be an object, got "x".'),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "txt": 1}]}]},
     "There is no request field 'messages[0].content[0].txt'; did you mean 'text'?"),
    ({"messages": [{"role": "user", "content": [{}] * 5000}]}, "messages[0].content may have at most 4096 blocks"),
    ({"system": 7}, "system must be text or a list of blocks, got 7."),
    ({"system": [PNG]}, "system[0]: this model takes text only"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema must be a JSON schema: an object, got None."),
    ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name must be 1 to 128 letters"),
    ({"tools": [{"name": "f", "input_schema": {}, "description": 1}]}, "tools[0].description must be text, got 1."),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type is 'web_search_20250305'"),
    ({"tools": [{"name": "f", "inputschema": {}, "input_schema": {}}]}, "did you mean 'input_schema'?"),
    ({"tools": [{"name": "f", "input_schema": {"type": "array"}}]}, "tools[0].input_schema.type must be 'object'"),
    ({"messages": [{"role": "assistant", "content": ""}]}, "messages must hold something that is said."),
    ({"tool_choice": {"type": "any"}}, "tool_choice.type is 'any', and there are no tools"),
    ({"tool_choice": {"type": "some"}}, "tool_choice.type must be one of auto, any, none, tool; got 'some'."),
    ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name is missing"),
    ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice names 'g', which is none of"),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens is missing"),
    ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking.budget_tokens must be at least 1024, got 9."),
    ({"thinking": {"type": "on"}}, "thinking.type must be one of enabled, adaptive, between_tools, disabled;"),
    ({"output_config": {"effort": "some"}}, "output_config.effort must be one of none, minimal"),
    ({"output_config": {"format": {"type": "text"}}}, "output_config.format.type must be 'json_schema', got 'text'."),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema must be a JSON schema"),
    ({"stop_sequences": ["x"] * 100}, "stop_sequences may have at most"),
    ({"temperature": 3}, "temperature must be"),
    ({"mcp_servers": [{"url": "x"}]}, "mcp_servers is not supported"),
    ({"n": 2}, "There is no request field 'n'"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs may not set messages."),
])
async def test_what_is_refused_is_named(http: httpx2.AsyncClient, body: Any, said: str) -> None:
    reply = await post(http, 400, **body)
    assert set(reply) == {"type", "error", "request_id"}
    assert (reply["type"], reply["error"]["type"]) == ("error", "invalid_request_error")
    assert said in reply["error"]["message"]


async def test_errors_are_the_sdk_s_own(sdk: anthropic.AsyncAnthropic, http: httpx2.AsyncClient,
                                        fake: FakeEngine) -> None:
    ask: Any = {"model": "m", "messages": ASK, "max_tokens": 50}
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        await sdk.messages.create(**ask | {"model": "claude"})
    assert (await post(http, 413, system="x" * 10**5))["error"]["type"] == "request_too_large"
    for own, kind, name in ((True, anthropic.RateLimitError, "rate_limit_error"),
                            (False, anthropic.InternalServerError, "overloaded_error")):
        fake.refuse = OverloadedError("Later.", retry_after_s=2.0, own_limit=own)
        with pytest.raises(kind, match=name) as caught:
            await sdk.messages.create(**ask)
        assert isinstance(caught.value, anthropic.APIStatusError)
        assert caught.value.response.headers["retry-after"] == "2"
    fake.refuse = context_length_error(100, 250, 50)
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: 250 tokens > 99 maximum"):
        await sdk.messages.create(**ask)
    for path in PATHS:
        reply = await http.get(path)
        assert (reply.status_code, reply.json()["error"]["type"]) == (405, "invalid_request_error")
    assert {route.path for route in ROUTES} > PATHS


async def test_a_stream_that_fails_says_so(sdk: anthropic.AsyncAnthropic, http: httpx2.AsyncClient,
                                           fake: FakeEngine) -> None:
    fake.fails_after = 2
    found = await events(http)
    assert found[-1]["error"]["type"] == "api_error" and "secret" not in str(found)
    assert "message_stop" not in [event["type"] for event in found]
    with pytest.raises(anthropic.APIStatusError, match="api_error"):
        async with sdk.messages.stream(model="m", messages=ASK, max_tokens=50) as stream:
            await stream.get_final_message()


async def test_fields_of_betas_are_named_where_they_are_passed_over(http: httpx2.AsyncClient) -> None:
    body = {"messages": ASK, "max_tokens": 50, "novelty": 1, "speed": "fast"}
    assert "'novelty'" in (await post(http, 400, novelty=1))["error"]["message"]
    reply = await http.post("/v1/messages", json=body, headers={"anthropic-beta": "novelty-2027-01-01"})
    assert (reply.status_code, reply.headers["warning"]) == (200, '199 quire "fields ignored: novelty, speed"')
    reply = await http.post("/v1/messages", json=body | {"thread": {"id": "1"}}, headers={"anthropic-beta": "x"})
    assert (reply.status_code, reply.json()["error"]["message"][:23]) == (400, "thread is not supported")


async def test_whatever_a_field_holds_is_taken_or_refused(http: httpx2.AsyncClient) -> None:
    request = coding_agent.REQUEST | {
        "tools": coding_agent.TOOLS[:2], "tool_choice": {"type": "any"}, "chat_template_kwargs": {"a": 1},
        "output_config": {"format": {"type": "json_schema", "schema": {}}}, "stop_sequences": ["x"]}
    places, chance = list(_places(request)), random.Random(17)
    for path in sorted(PATHS) * 100:
        body = copy.deepcopy(request)
        *way, last = chance.choice(places)
        value = chance.choice([None, True, -1, 1.5, 10**30, "", "x", [], {}, [1], ["x"], [{}], [[]], {"type": "text"},
                               {"type": 1}, [{"type": "text", "text": "t"}], json.loads("[" * 200 + "]" * 200)])
        reduce(operator.getitem, way, body)[last] = value
        reply = await http.post(path, json=body, headers=coding_agent.HEADERS)
        assert reply.status_code in (200, 400, 404), (way, last, value)
        assert "event: error" not in reply.text
        assert reply.status_code == 200 or reply.json()["type"] == "error"


def _places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*way, key)
        yield from _places(value[key], (*way, key))


async def test_pings_and_failures_are_events() -> None:
    wire = Wire()
    await run(of(0.15, b"*", ApiError(503, "Later.")), wire, 0.1, kind=MessageStream)
    ping, _, failure = wire.body.partition(b"*")
    assert ping == b'event: ping\ndata: {"type":"ping"}\n\n'
    assert failure == (b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Later."}}'
                       b"\n\n")


def test_an_image_in_a_tools_result_is_called_one_whatever_its_size() -> None:
    def refused(block: Any) -> str:
        result = {"type": "tool_result", "tool_use_id": "1", "content": [block]}
        message = {"role": b'"user"', "content": msgspec.json.encode([result])}
        with pytest.raises((ApiError, InvalidRequestError)) as caught:
            conversation_of(NULL, [{name: msgspec.Raw(value) for name, value in message.items()}],
                            SentImages(True, UnknownFields()), 512)
        return str(caught.value)

    assert "type is 'image'; here it must be 'text'" in refused({"type": "image", "source": "A" * 3_000_000})
    assert "reduce the length of the prompt" in refused({"type": "text", "text": "A" * 3_000_000})
