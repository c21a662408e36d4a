"""Tools over HTTP: what is asked of the engine, and what becomes of its text."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.app.fake_engine import FakeEngine
from tests.app.test_chat import events

TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}, {"type": "function", "function": {"name": "now"}}]
TEXT = ('I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now"}\n</tool_call>')
CALLS = [("weather", '{"city": "Ulm"}'), ("now", "{}")]
ASK = [{"role": "user", "content": "Hello"}]


async def post(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    reply = await client.post("/v1/chat/completions", json={"messages": ASK, "tools": TOOLS, **body})
    assert reply.status_code == 200, reply.text
    return reply


async def test_calls_are_taken_out_of_the_text(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.text = TEXT
    choice = (await post(client)).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I look."
    calls = choice["message"]["tool_calls"]
    assert [(call["type"], call["function"]["name"], call["function"]["arguments"]) for call in calls] == [
        ("function", *call) for call in CALLS]
    assert len({call["id"] for call in calls}) == 2
    assert fake.submitted[-1][1].structured_outputs is None


async def test_a_stream_tells_the_same_to_openai_s_sdk(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.text = TEXT
    sdk = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=client)
    async with sdk.chat.completions.stream(model="m", messages=ASK, tools=TOOLS, n=2) as stream:  # type: ignore[arg-type, call-overload]
        whole = await stream.get_final_completion()
    for choice in whole.choices:
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
        assert [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []] == CALLS
    chunks = events(await post(client, stream=True))[:-1]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert {} not in deltas[:-1], "what says nothing is not sent"
    begun = [call for delta in deltas for call in delta.get("tool_calls", []) if "id" in call]
    assert [call["index"] for call in begun] == [0, 1]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(("choice", "finish", "names"), [
    ("required", "tool_calls", ["weather", "now"]),
    ({"type": "function", "function": {"name": "now"}}, "stop", ["now"]),
])
async def test_what_must_be_called_is_a_form(client: httpx.AsyncClient, fake: FakeEngine, choice: Any, finish: str,
                                             names: list[str]) -> None:
    fake.text = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    reply = (await post(client, tool_choice=choice)).json()
    assert reply["choices"][0]["finish_reason"] == finish
    assert reply["choices"][0]["message"]["content"] is None
    form = fake.submitted[-1][1].structured_outputs.structural_tag["format"]
    assert [tag["begin"] for tag in form["tags"]] == [
        f'<tool_call>\n{{"name": "{name}", "arguments": ' for name in names]


async def test_of_the_tools_only_some_may_be_allowed(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    def only(name: str, mode: str = "required") -> dict[str, Any]:
        return {"type": "allowed_tools", "allowed_tools": {
            "mode": mode, "tools": [{"type": "function", "function": {"name": name}}]}}

    fake.text = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert (await post(client, tool_choice=only("now"))).json()["choices"][0]["finish_reason"] == "tool_calls"
    [(_, variables)] = fake.chat_template.seen[-1:]
    assert variables["tools"] == [TOOLS[1]]
    form = fake.submitted[-1][1].structured_outputs.structural_tag["format"]
    assert [tag["begin"] for tag in form["tags"]] == ['<tool_call>\n{"name": "now", "arguments": ']
    await post(client, tool_choice=only("now", "auto"))
    assert fake.submitted[-1][1].structured_outputs is None
    refused = [(only("then"), "tool_choice.allowed_tools.tools[0]"),
               (only("now", "none"), "tool_choice.allowed_tools"), ({"type": "allowed_tools"}, "tool_choice")]
    for wrong, param in refused:
        reply = await client.post("/v1/chat/completions", json={"messages": ASK, "tools": TOOLS, "tool_choice": wrong})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == param


async def test_who_asks_for_one_call_gets_the_first(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.text = TEXT
    [call] = (await post(client, parallel_tool_calls=False)).json()["choices"][0]["message"]["tool_calls"]
    assert (call["function"]["name"], call["function"]["arguments"]) == CALLS[0]
    chunks = events(await post(client, parallel_tool_calls=False, stream=True))[:-1]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert {call["index"] for delta in deltas for call in delta.get("tool_calls", [])} == {0}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_parameters_are_an_object(client: httpx.AsyncClient) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}
    reply = await client.post("/v1/chat/completions", json={"messages": ASK, "tools": [tool]})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "tools[0].function.parameters"


async def test_strict_tools_bind_calls_but_do_not_ask_for_one(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    strict = [{"function": {**TOOLS[0]["function"], "strict": True}}]  # type: ignore[dict-item]
    await post(client, tools=strict)
    assert fake.submitted[-1][1].structured_outputs.structural_tag["format"]["type"] == "triggered_tags"
    await post(client, tools=strict, tool_choice="none")
    assert fake.submitted[-1][1].structured_outputs is None


async def test_without_tools_a_text_is_a_text(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.text = TEXT
    for body in ({"tool_choice": "none"}, {"tools": []}):
        message = (await post(client, **body)).json()["choices"][0]["message"]
        assert (message["content"], message["tool_calls"]) == (TEXT, [])


async def test_a_template_without_tools_is_told_of_them_in_words(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    history = [*ASK, {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "21 C"}]}]
    await post(client, messages=history)
    [(messages, variables)] = fake.chat_template.seen[-1:]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert json.dumps(TOOLS[1]["function"]) in messages[0]["content"]
    assert messages[2]["content"] == '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
    assert messages[3]["content"] == "<tool_response>\n21 C\n</tool_response>"
    assert variables["tools"] == TOOLS


async def test_a_template_with_tools_gets_arguments_as_objects(client: httpx.AsyncClient, fake: FakeEngine,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake.chat_template, "source", "{% for tool in tools %}<tool_call>{% endfor %}", raising=False)
    history = [*ASK, {"role": "assistant", "content": "Hm", "reasoning": "So.", "tool_calls": [
        {"id": "1", "function": {"name": "now", "arguments": sent}} for sent in ('{"a": 1}', "no JSON", "[]", "")]},
        {"role": "tool", "tool_call_id": "1", "content": "x"}]
    await post(client, messages=history)
    [(messages, _)] = fake.chat_template.seen[-1:]
    assert [call["function"]["arguments"] for call in messages[1]["tool_calls"]] == [{"a": 1}, {}, {}, {}]
    assert messages[1]["reasoning_content"] == "So."
    assert messages[2] == {"role": "tool", "content": "x", "tool_call_id": "1"}


async def test_a_begun_answer_is_gone_on_with(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    await post(client, messages=[*ASK, {"role": "assistant", "content": "So"}], tools=[], add_generation_prompt=False,
               continue_final_message=True)
    assert fake.chat_template.seen[-1][1]["continue_final_message"] is True


async def test_thinking_is_told_apart_and_counted(client: httpx.AsyncClient, fake: FakeEngine,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake.chat_template, "source", "<think></think>", raising=False)
    fake.text = "<think>Hm.</think>\n\nYes"
    reply = (await post(client, tools=[])).json()
    message = reply["choices"][0]["message"]
    assert (message["content"], message["reasoning"], message["reasoning_content"]) == ("Yes", "Hm.", "Hm.")
    assert reply["usage"]["completion_tokens_details"] == {"reasoning_tokens": len("Hm.</think>")}
    deltas = [chunk["choices"][0]["delta"] for chunk in events(await post(client, tools=[], stream=True))[:-1]]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "Hm."
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes"
    hidden = (await post(client, tools=[], include_reasoning=False)).json()["choices"][0]["message"]
    assert "reasoning" not in hidden and hidden["content"] == "Yes"
    await post(client, tools=[], response_format={"type": "json_object"})
    form = fake.submitted[-1][1].structured_outputs.structural_tag["format"]
    assert form["type"] == "or", "thought before, or not"


async def test_a_budget_of_thinking_is_a_part_of_the_form(client: httpx.AsyncClient, fake: FakeEngine,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake.chat_template, "source", "<think></think>", raising=False)
    await post(client, tools=[], thinking_token_budget=7)
    [thought, _] = fake.submitted[-1][1].structured_outputs.structural_tag["format"]["elements"]
    assert thought["elements"][0]["content"] == {"type": "any_text", "max_tokens": 7}
    await post(client, tools=[], thinking_token_budget=-1)
    assert fake.submitted[-1][1].structured_outputs is None


async def test_tools_stand_where_the_template_looks_for_them(client: httpx.AsyncClient, fake: FakeEngine,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake.chat_template, "source", "{{ message['tools'] }}", raising=False)
    await post(client)
    [(messages, _)] = fake.chat_template.seen[-1:]
    assert json.loads(messages[0]["tools"]) == [tool["function"] for tool in TOOLS]
    assert [message["role"] for message in messages] == ["system", "user"]
