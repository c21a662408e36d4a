"""POST /v1/responses: items and events, and what clients of OpenAI's Responses API make of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from itertools import groupby
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel
from starlette.applications import Starlette

from quire.engine.errors import EngineDeadError, OverloadedError, context_length_error
from tests.app.fake_engine import FakeEngine

WEATHER = {"type": "function", "name": "weather", "description": "Of a city.", "strict": None, "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}
TOOLS = [WEATHER, {"type": "function", "name": "now"}]
CALLS = ('I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>\n'
         '<tool_call>\n{"name": "now"}\n</tool_call>')
THINKS = "<think></think>"  # a template that knows these tags
UNLIKE = frozenset({"id", "call_id", "completed_at", "created_at"})


@pytest.fixture
async def roomy(make_app: Callable[..., Starlette]) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(max_body_bytes=2**21)
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


@pytest.fixture
def sdk(client: httpx.AsyncClient) -> openai.AsyncOpenAI:
    http: Any = client
    return openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=http, max_retries=0)


async def send(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/responses", json={"input": "Hello", **body})


async def ask(client: httpx.AsyncClient, **body: Any) -> Any:
    reply = await send(client, **body)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def listen(client: httpx.AsyncClient, **body: Any) -> list[Any]:
    """The events, in order, as they must be."""
    reply = await send(client, stream=True, **body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    *blocks, after = reply.text.split("\n\n")
    assert after == ""
    events = []
    for block in blocks:
        kind, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_ids(inner) for name, inner in value.items() if name not in UNLIKE}
    return [without_ids(inner) for inner in value] if isinstance(value, list) else value


def told(events: list[Any]) -> list[Any]:
    """The items that the events between the first two and the last tell of, each in the one order that clients take."""
    items: list[Any] = []
    for index, group in groupby(events, lambda event: event["output_index"]):
        added, *between, done = group
        assert (index, added["type"], done["type"]) == (
            len(items), "response.output_item.added", "response.output_item.done")
        item = done["item"]
        assert all(event["item_id"] == item["id"] for event in between)
        empty: Any = {"arguments": ""} if item["type"] == "function_call" else {"content": []}
        assert added["item"] == item | empty | {"status": "in_progress"}
        if item["type"] != "function_call":
            opened, *between, closed = between
            assert (opened["type"], closed["type"]) == ("response.content_part.added", "response.content_part.done")
            assert all(event["content_index"] == 0 for event in (opened, *between, closed))
            assert opened["part"]["text"] == ""
            assert [closed["part"]] == item["content"]
        *deltas, whole = between
        name = {"message": "output_text", "reasoning": "reasoning_text", "function_call": "function_call_arguments"}
        kind = f"response.{name[item['type']]}"
        assert {event["type"] for event in deltas} <= {f"{kind}.delta"}
        assert whole["type"] == f"{kind}.done"
        text = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert "".join(event["delta"] for event in deltas) == text
        assert whole.get("text", whole.get("arguments")) == text
        items.append(item)
    return items


REPLIES: dict[str, tuple[str, dict[str, Any], str, list[str]]] = {
    "words": ("Hi 👋!", {}, "", ["message"]),
    "no word": ("<think>Hm.</think>", {"include_reasoning": False}, THINKS, ["message"]),
    "calls": (CALLS, {"tools": TOOLS}, "", ["message", "function_call", "function_call"]),
    "thoughts": ("<think>Hm.</think>\n\nYes", {}, THINKS, ["reasoning", "message"]),
    "hidden thoughts": ("<think>Hm.</think>\n\nYes", {"include_reasoning": False}, THINKS, ["message"]),
    "all": (f"<think>Hm.</think>\n\n{CALLS} Well?", {"tools": TOOLS, "top_logprobs": 2}, THINKS,
            ["reasoning", "message", "function_call", "function_call", "message"]),
    "cut thought": ("<think>Hm.</think>", {"max_output_tokens": 9}, THINKS, ["reasoning"]),
    "cut call": (CALLS, {"tools": TOOLS, "max_output_tokens": CALLS.index("lm")}, "", ["message", "function_call"]),
}


@pytest.mark.parametrize("name", REPLIES)
async def test_a_stream_tells_the_reply_that_is_sent_whole(client: httpx.AsyncClient, fake: FakeEngine, name: str,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    fake.text, body, template, kinds = REPLIES[name]
    fake.finish_reason = "length" if "max_output_tokens" in body else "stop"
    monkeypatch.setattr(fake.chat_template, "source", template)
    whole = await ask(client, **body)
    created, in_progress, *events, completed = await listen(client, **body)
    assert [event["type"] for event in (created, in_progress, completed)] == [
        "response.created", "response.in_progress", "response.completed"]
    begun = created["response"]
    assert in_progress["response"] == begun
    assert (begun["status"], begun["output"], begun["usage"]) == ("in_progress", [], None)
    assert told(events) == completed["response"]["output"]
    assert completed["response"]["id"] == begun["id"]
    assert without_ids(completed["response"]) == without_ids(whole)
    assert [item["type"] for item in whole["output"]] == kinds
    assert without_ids(whole) == without_ids(begun) | {
        name: without_ids(whole[name]) for name in ("status", "output", "usage", "incomplete_details")}
    cut = "max_output_tokens" in body
    assert whole["status"] == ("incomplete" if cut else "completed")
    assert whole["incomplete_details"] == ({"reason": "max_output_tokens"} if cut else None)
    assert [item["status"] for item in whole["output"]] == ["completed"] * (len(kinds) - 1) + [whole["status"]]


async def test_a_reply_has_what_clients_read(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.model_config.generation_defaults = {"temperature": 0.3}
    reply = await ask(client, model="alias", instructions="Be nice.", metadata={"a": "b"}, top_p=0.5, tools=[],
                      max_output_tokens=9, reasoning={"effort": "low"}, text={"verbosity": "medium"}, store=True,
                      parallel_tool_calls=False, truncation="disabled", background=False, stream_options=None)
    Response.model_validate(reply)
    expected: dict[str, Any] = {
        "object": "response", "model": "alias", "status": "completed", "error": None, "incomplete_details": None,
        "instructions": "Be nice.", "metadata": {"a": "b"}, "temperature": 0.3, "top_p": 0.5, "max_output_tokens": 9,
        "tools": [], "tool_choice": "auto", "parallel_tool_calls": False, "store": False, "truncation": "disabled",
        "text": {"format": {"type": "text"}, "verbosity": "medium"}, "previous_response_id": None}
    assert {name: reply[name] for name in expected} == expected
    assert reply["reasoning"]["effort"] == "low"
    assert reply["id"].startswith("resp_")
    assert reply["completed_at"] >= reply["created_at"]
    [item] = reply["output"]
    assert item.pop("id").startswith("msg_")
    assert item == {"type": "message", "role": "assistant", "status": "completed", "content": [
        {"type": "output_text", "text": "Hi 👋!", "annotations": [], "logprobs": []}]}
    assert reply["usage"] == {
        "input_tokens": 13, "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0}, "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 18}


async def test_thoughts_are_counted(client: httpx.AsyncClient, fake: FakeEngine,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    fake.text = "<think>Hm.</think>\n\nYes"
    monkeypatch.setattr(fake.chat_template, "source", THINKS)
    reply = await ask(client, include=["reasoning.encrypted_content"])
    assert reply["output"][0]["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert (reply["output"][0]["summary"], reply["output"][0]["encrypted_content"]) == ([], None)
    assert reply["usage"]["output_tokens_details"] == {"reasoning_tokens": len("Hm.</think>")}


async def test_logprobs_are_those_of_the_text(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    body = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    [item] = (await ask(client, **body))["output"]
    tokens = item["content"][0]["logprobs"]
    assert "".join(token["token"] for token in tokens) == "Hi 👋!"
    assert [len(token["top_logprobs"]) for token in tokens] == [2] * 5
    assert fake.submitted[-1][1].logprobs == 2
    deltas = [event for event in await listen(client, **body) if event["type"] == "response.output_text.delta"]
    assert [event["logprobs"][0]["token"] for event in deltas] == list("Hi 👋!")
    await ask(client, include=["message.output_text.logprobs"])
    assert fake.submitted[-1][1].logprobs == 0


async def test_what_is_thought_or_called_has_no_logprobs(client: httpx.AsyncClient, fake: FakeEngine,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake.chat_template, "source", THINKS)
    fake.text = f"<think>Hm.</think>\n\n{CALLS} Well?"
    output = (await ask(client, top_logprobs=1, tools=TOOLS))["output"]
    texts = ["".join(token["token"] for token in part["logprobs"])
             for item in output for part in item.get("content", []) if "logprobs" in part]
    assert [text.strip() for text in texts] == ["I look.", "Well?"]


async def test_openai_s_sdk_takes_replies_and_streams(sdk: openai.AsyncOpenAI, fake: FakeEngine) -> None:
    fake.text = CALLS
    tools: Any = TOOLS
    whole = await sdk.responses.create(model="m", input="Hello", tools=tools)
    async with sdk.responses.stream(model="m", input="Hello", tools=tools) as stream:
        events = [event async for event in stream]
        streamed = await stream.get_final_response()
    assert events[-1].type == "response.completed"
    for reply in (whole, streamed):
        assert (reply.output_text, reply.status) == ("I look.", "completed")
        calls = [item for item in reply.output if item.type == "function_call"]
        assert [(call.name, call.arguments) for call in calls] == [("weather", '{"city": "Ulm"}'), ("now", "{}")]
    fake.finish_reason = "length"
    async with sdk.responses.stream(model="m", input="Hello") as stream:
        assert (await stream.get_final_response()).status == "incomplete"


async def test_openai_s_sdk_parses_what_has_a_form(sdk: openai.AsyncOpenAI, fake: FakeEngine) -> None:
    class Person(BaseModel):
        name: str

    fake.text = '{"name": "Ada"}'
    assert (await sdk.responses.parse(model="m", input="Who?", text_format=Person)).output_parsed == Person(name="Ada")
    form: Any = fake.submitted[-1][1].structured_outputs
    assert (form.name, form.json["properties"]["name"]["type"]) == ("text.format", "string")
    async with sdk.responses.stream(model="m", input="Who?", text_format=Person) as stream:
        assert (await stream.get_final_response()).output_parsed == Person(name="Ada")


async def test_what_a_reply_held_can_be_sent_back(sdk: openai.AsyncOpenAI, fake: FakeEngine,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake.chat_template, "source", f"{THINKS}{{{{ tools }}}}<tool_call>")
    fake.text = f"<think>Hm.</think>\n\n{CALLS}"
    tools: Any = TOOLS
    history: list[Any] = [{"role": "user", "content": "Hello"}]
    reply = await sdk.responses.create(model="m", input=history, tools=tools)
    history += [item.model_dump() for item in reply.output]
    calls = [item for item in reply.output if item.type == "function_call"]
    history += [{"type": "function_call_output", "call_id": call.call_id, "output": "21 C"} for call in calls]
    raw = await sdk.responses.with_raw_response.create(model="m", input=history, tools=tools)
    assert "warning" not in raw.headers
    user, assistant, *results = fake.chat_template.seen[-1][0]
    assert user == {"role": "user", "content": "Hello"}
    assert (assistant["content"], assistant["reasoning"]) == ("I look.", "Hm.")
    assert [call["function"] for call in assistant["tool_calls"]] == [
        {"name": "weather", "arguments": {"city": "Ulm"}}, {"name": "now", "arguments": {}}]
    assert results == [{"role": "tool", "content": "21 C", "tool_call_id": call.call_id} for call in calls]


@pytest.mark.parametrize(("items", "messages"), [
    ([{"role": "developer", "content": "Be nice."}, {"type": "message", "role": "user", "content": [
        {"type": "input_text", "text": "a"}, {"type": "text", "text": "b", "annotations": []}]}],
     [{"role": "system", "content": "Be nice."},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]),
    ([{"role": "assistant", "content": "a"}, {"role": "assistant", "id": "msg_1", "status": "completed", "content": [
        {"type": "output_text", "text": "b", "logprobs": []}, {"type": "refusal", "refusal": "c"}]}],
     [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b\nc"}]),
    ([{"role": "assistant", "content": None}], [{"role": "assistant", "content": ""}]),
    ([{"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "In short."}], "content": None},
      {"role": "assistant", "content": "a"},
      {"type": "reasoning", "summary": [{"type": "summary_text", "text": "In short."}],
       "content": [{"type": "reasoning_text", "text": "At length."}]},
      {"type": "reasoning", "summary": []}, {"role": "user", "content": "b"}],
     [{"role": "assistant", "content": "a", "reasoning": "In short.", "reasoning_content": "In short."},
      {"role": "assistant", "content": "", "reasoning": "At length.", "reasoning_content": "At length."},
      {"role": "user", "content": "b"}]),
    ([{"type": "function_call", "call_id": "1", "name": "now", "arguments": "no JSON"},
      {"role": "assistant", "content": "a"},
      {"type": "function_call", "call_id": "2", "name": "weather", "arguments": {"city": "Ulm"}},
      {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "21 C"}]},
      {"type": "function_call", "call_id": "3", "name": "now"}],
     [{"role": "assistant", "content": "a", "tool_calls": [
         {"id": "1", "type": "function", "function": {"name": "now", "arguments": {}}},
         {"id": "2", "type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}]},
      {"role": "tool", "content": "21 C", "tool_call_id": "2"},
      {"role": "assistant", "content": "", "tool_calls": [
          {"id": "3", "type": "function", "function": {"name": "now", "arguments": {}}}]}]),
])
async def test_items_become_the_messages_of_a_template(client: httpx.AsyncClient, fake: FakeEngine, items: list[Any],
                                                       messages: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake.chat_template, "source", "{{ tools }}")
    reply = await send(client, input=items)
    assert (reply.status_code, "warning" in reply.headers) == (200, False), reply.text
    assert fake.chat_template.seen[-1][0] == messages


async def test_instructions_and_the_first_system_messages_are_one(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    await ask(client, instructions="You are a poet.")
    assert fake.chat_template.seen[-1][0] == [
        {"role": "system", "content": "You are a poet."}, {"role": "user", "content": "Hello"}]
    await ask(client, instructions="You are a poet.", input=[
        {"role": "system", "content": "Be nice."}, {"role": "developer", "content": [
            {"type": "input_text", "text": "Be"}, {"type": "input_text", "text": "brief."}]},
        {"role": "user", "content": "Hello"}, {"role": "system", "content": "Now rhyme."}])
    assert fake.chat_template.seen[-1][0] == [
        {"role": "system", "content": "You are a poet.\n\nBe nice.\n\nBe\nbrief."},
        {"role": "user", "content": "Hello"}, {"role": "system", "content": "Now rhyme."}]


async def test_parameters_reach_the_engine(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    await ask(client, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, seed=3, stop=["x"], max_output_tokens=4,
              min_tokens=1, repetition_penalty=1.1, logit_bias={"65": 1}, ignore_eos=True, priority=-2, cache_salt="s",
              user="u", n=1, chat_template_kwargs={"a": 1, "thinking": True}, reasoning={"effort": "none"})
    _, params, extra = fake.submitted[-1]
    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.seed) == (0.5, 0.9, 7, 0.1, 3)
    assert (params.stop, params.max_tokens, params.min_tokens, params.logprobs) == (["x"], 4, 1, None)
    assert (extra["priority"], extra["cache_salt"], extra["add_special_tokens"]) == (-2, "s", False)
    variables = fake.chat_template.seen[-1][1]
    assert {name: variables[name] for name in ("a", "reasoning_effort", "enable_thinking", "thinking")} == {
        "a": 1, "reasoning_effort": "none", "enable_thinking": False, "thinking": True}


@pytest.mark.parametrize(("choice", "offered", "must"), [
    ("auto", ["weather", "now"], []), ("none", [], []), ("required", ["weather", "now"], ["weather", "now"]),
    ({"type": "function", "name": "now"}, ["weather", "now"], ["now"]),
    ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "now"}]}, ["now"], []),
    ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]}, ["now"], ["now"]),
])
async def test_a_choice_of_tools_is_chat_s(client: httpx.AsyncClient, fake: FakeEngine, choice: Any,
                                           offered: list[str], must: list[str]) -> None:
    reply = await ask(client, tools=TOOLS, tool_choice=choice)
    assert (reply["tools"], reply["tool_choice"]) == (TOOLS, choice)
    shown = fake.chat_template.seen[-1][1]["tools"] or []
    assert [tool["function"]["name"] for tool in shown] == offered
    form: Any = fake.submitted[-1][1].structured_outputs
    tags = form.structural_tag["format"]["tags"] if form else []
    assert [tag["begin"].split('"')[3] for tag in tags] == must


@pytest.mark.parametrize(("body", "param", "words"), [
    ({"input": 5}, "input", "must be text or a list of items"),
    ({"input": []}, "input", "at least one item"),
    ({"input": ["x"]}, "input[0]", "must be an object"),
    ({"input": [{"type": "reasoning", "summary": []}]}, "input", "thoughts alone"),
    ({"input": [{"type": "web_search_call"}]}, "input[0].type", "must be one of message, function_call"),
    ({"input": [{}]}, "input[0].type", "got null"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "stores none"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "must be one of user"),
    ({"input": [{"role": "user"}]}, "input[0].content", "must be text"),
    ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 1}]}]}, "input[0].content[0].text",
     "must be text"),
    ({"input": [{"role": "user", "content": "x"}, {"role": "user", "content": [{"type": "input_image"}]}]},
     "input[1].content[0]", "'input_image' are not supported"),
    ({"input": [{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}]}, "input[0].content[0]",
     "'refusal'"),
    ({"input": [{"role": "user", "content": "x", "contents": "y"}]}, "input[0].contents", "did you mean 'content'?"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id", "must be text"),
    ({"input": [{"type": "function_call", "call_id": "1", "arguments": "{}"}]}, "input[0].name", "must be text"),
    ({"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": 1}]}, "input[0].arguments",
     "must be text or an object"),
    ({"input": [{"type": "function_call_output", "call_id": "1"}]}, "input[0].output", "must be text"),
    ({"input": [{"type": "reasoning", "content": [{"type": "output_text", "text": "x"}]}]}, "input[0].content[0]",
     "only reasoning_text, summary_text"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "has no tools of its own"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name", "beside the type"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name", "must be 1 to 128"),
    ({"tools": [{"type": "function", "name": "f", "parameters": []}]}, "tools[0].parameters", "must be a JSON schema"),
    ({"tools": [{"type": "function", "name": "f", "parameters": {"type": "string"}}]}, "tools[0].parameters",
     "must be 'object'"),
    ({"tools": [{"type": "function", "name": "f"}] * 2}, "tools", "two tools named 'f'"),
    ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "allowed_tools"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "now"}}}, "tool_choice", '"name": NAME'),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "none of the tools"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "tools": [{"name": "f"}]}}, "tool_choice.tools[0]",
     "none of the tools"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "x", "tools": []}}, "tool_choice", "mode"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "tools": [["now"]]}}, "tool_choice.tools[0]", "None"),
    ({"tools": [{}] * 513}, "tools", "at most 512 tools"),
    ({"tool_choice": "required"}, "tool_choice", "no tools"),
    ({"text": {"format": {"type": "json"}}}, "text.format", "text.format.type must be one of"),
    ({"text": {"format": {"type": "json_schema", "json_schema": {"schema": {}}}}}, "text.format",
     "text.format.schema must be a JSON schema"),
    ({"text": {"format": {"type": "json_object"}}, "guided_regex": "x"}, "guided_regex", "both ask for a form"),
    ({"text": {"formatt": {}}}, "text.formatt", "did you mean 'format'?"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "must be one of none"),
    ({"include": ["message.output_text.logprob"]}, "include[0]", "must be one of message.output_text.logprobs"),
    ({"metadata": {"a": 1}}, "metadata[...]", "must be text"),
    ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "at most 16 entries"),
    ({"max_output_tokens": 0}, "max_output_tokens", "at least 1"),
    ({"max_output_tokens": 2, "min_tokens": 3}, "min_tokens", "max_output_tokens"),
    ({"top_logprobs": 21}, "top_logprobs", "at most 20"),
    ({"top_logprobs": -1}, "top_logprobs", "at least 0"),
    ({"temperature": 3}, "temperature", "temperature"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation"),
    ({"conversation": {"id": "conv_1"}}, "conversation", "send the whole conversation"),
    ({"background": True}, "background", "send false"),
    ({"truncation": "auto"}, "truncation", 'send "disabled"'),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "/v1/responses takes input"),
    ({"max_tokens": 5}, "max_tokens", "here it is max_output_tokens"),
    ({"max_completion_tokens": 5}, "max_completion_tokens", "max_output_tokens"),
    ({"n": 2}, "n", "one reply"),
    ({"use_beam_search": True}, "use_beam_search", "/v1/chat/completions"),
    ({"length_penalty": 0.5}, "length_penalty", "/v1/chat/completions"),
    ({"reasoning_effort": "low"}, "reasoning_effort", "here it is reasoning.effort"),
    ({"prompt_logprobs": 0}, "prompt_logprobs", "no place"),
    ({"response_format": {"type": "json_object"}}, "response_format", "here it is text.format"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "may not set messages"),
    ({"chat_template_kwargs": {"no_system": True}, "instructions": "x"}, "input", "System role not supported"),
    ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
])
async def test_what_cannot_be_served_is_refused_by_name(client: httpx.AsyncClient, fake: FakeEngine,
                                                        body: dict[str, Any], param: str, words: str) -> None:
    reply = await send(client, **body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
    assert words in reply.json()["error"]["message"]
    assert not fake.submitted


async def test_what_was_sent_in_place_of_the_input_is_named(client: httpx.AsyncClient) -> None:
    for body, param in (({"messages": [{"role": "user", "content": "x"}]}, "messages"), ({}, "input")):
        error = (await client.post("/v1/responses", json=body)).json()["error"]
        assert error["param"] == param
        assert "input" in error["message"]


async def test_wishes_that_change_nothing_are_named(client: httpx.AsyncClient) -> None:
    reply = await send(client, text={"verbosity": "low"}, reasoning={"summary": "detailed", "context": "auto"}, input=[
        {"type": "reasoning", "summary": [], "encrypted_content": "x"}, {"role": "user", "content": "x"}])
    assert reply.headers["warning"] == (
        '199 quire "fields ignored: text.verbosity, reasoning.summary, input[].encrypted_content"')


async def test_a_refusal_of_the_engine_names_the_fields_of_this_api(client: httpx.AsyncClient,
                                                                    fake: FakeEngine) -> None:
    for prompt, param in ((5, "max_output_tokens"), (200, "input")):
        fake.refuse = context_length_error(100, prompt, 200)
        error = (await send(client, max_output_tokens=200)).json()["error"]
        assert (error["param"], "max_output_tokens" in error["message"]) == (param, True)
    fake.refuse = OverloadedError("full", 1.5)
    assert (await send(client, stream=True)).status_code == 503, "before the first event, with a status"


async def test_a_failure_midway_is_told_in_events(client: httpx.AsyncClient, sdk: openai.AsyncOpenAI,
                                                  fake: FakeEngine) -> None:
    fake.fails_after, fake.failure = 2, EngineDeadError("The engine is gone.")
    *_, failed, error = await listen(client)
    assert (failed["type"], error["type"]) == ("response.failed", "error")
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["code"] == error["code"] == "server_error"
    assert error["message"] == error["error"]["message"] == failed["response"]["error"]["message"]
    assert error["message"] == "The engine is gone."
    assert fake.streams[-1].closed
    with pytest.raises(openai.APIError, match=r"The engine is gone\."):
        async with sdk.responses.stream(model="m", input="Hello") as stream:
            await stream.get_final_response()
    assert (await send(client)).status_code == 503


async def test_what_fails_before_the_first_event_but_after_a_comment_is_one_event(
        make_app: Callable[..., Starlette], fake: FakeEngine) -> None:
    fake.gate.clear()
    app = make_app(sse_ping_interval=0.02)
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        reply = await client.post("/v1/responses", json={"input": "Hello", "stream": True},
                                  headers={"x-request-timeout": "0.2"})
    *pings, error, end = reply.text.split("\n\n")
    assert (set(pings), end) == ({": ping"}, "")
    kind, data = error.split("\n")
    assert kind == "event: error"
    event = json.loads(data.removeprefix("data: "))
    assert (event["sequence_number"], event["error"]["code"]) == (0, 504)
    assert "x-request-timeout" in event["message"]


async def test_a_long_conversation_is_read(roomy: httpx.AsyncClient, fake: FakeEngine) -> None:
    items = [{"role": "user", "content": "x" * 5000}] * 10
    assert (await send(roomy, input=items)).status_code == 200
    assert fake.chat_template.seen[-1][0] == items
    for input, words in (([{"role": "user", "content": ""}] * 4097, "at most 4096 items"),
                         ([{"role": "user", "content": [{"type": "input_text", "text": ""}] * 4097}], "parts in all"),
                         ("x" * (2**20 + 1000), "characters")):
        reply = await send(roomy, input=input)
        assert (reply.status_code, words in reply.text) == (400, True), reply.text
        assert reply.json()["error"]["param"] == "input"
