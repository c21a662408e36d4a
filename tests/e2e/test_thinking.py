"""The real model under a template that opens its thinking and has tools in XML: what is forced on it is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from quire.engine.config import DEFAULT_MODEL
from tests.e2e.server import KEY, Server, serving

TEMPLATE = """{% if tools %}<|im_start|>system
{{ tools | tojson }}: <tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call><|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
{% if enable_thinking is false %}<think>

</think>

{% else %}<think>
{% endif %}"""
SCHEMA = {"type": "object", "required": ["city", "days"], "additionalProperties": False, "properties": {
    "city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1, "maximum": 9},
    "unit": {"enum": ["C", "F"]}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
ASK: list[Any] = [{"role": "user", "content": "What is gravity?"}]
BUDGET = 12
END_TOKENS = 6  # at most, of SmolLM2's for </think>


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("template") / "thinks.jinja"
    Path(path).write_text(TEMPLATE)
    with serving("--host", "127.0.0.1", "--chat-template", str(path)) as server:
        yield server


def ask(server: Server, **fields: Any) -> httpx.Response:
    url, headers = f"{server.url}/v1/chat/completions", {"authorization": f"Bearer {KEY}"}
    return httpx.post(url, headers=headers, timeout=60, json={
        "messages": ASK, "max_tokens": 30, "seed": 1, "temperature": 0.7, **fields})


@pytest.mark.parametrize("wish", [{}, {"structured_outputs": {"choice": ["yes", "no"]}}, {"tools": TOOLS}],
                         ids=["text", "form", "tools"])
def test_thinking_ends_with_its_budget(wish: dict[str, Any], thinker: Server) -> None:
    reply = ask(thinker, thinking_token_budget=BUDGET, **wish).json()
    message = reply["choices"][0]["message"]
    assert message["reasoning"] and message["content"], reply
    assert 0 < reply["usage"]["completion_tokens_details"]["reasoning_tokens"] <= BUDGET + END_TOKENS
    assert "structured_outputs" not in wish or message["content"] in ("yes", "no")
    assert "</think>" not in message["content"] + message["reasoning"]


def test_without_a_budget_it_thinks_on(thinker: Server) -> None:
    usage = ask(thinker, thinking_token_budget=-1).json()["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] > BUDGET + END_TOKENS


@pytest.mark.slow
def test_what_must_be_called_is_called_after_a_bounded_thought(thinker: Server) -> None:
    wish: dict[str, Any] = {"tools": TOOLS, "parallel_tool_calls": False, "max_tokens": 200}
    reply = ask(thinker, thinking_token_budget=BUDGET, tool_choice="required", **wish).json()
    message = reply["choices"][0]["message"]
    assert message["reasoning"] and message["content"] is None
    [call] = message["tool_calls"]
    jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)
    named: Any = {"type": "function", "function": {"name": "weather"}}
    with thinker.client() as client:
        chunks = client.chat.completions.create(
            model=DEFAULT_MODEL, messages=ASK, seed=1, temperature=0.7, stream=True, tool_choice=named,
            extra_body={"thinking_token_budget": BUDGET}, **wish)
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    parts = [part.function.arguments or "" for delta in deltas for part in delta.tool_calls or [] if part.function]
    assert "".join(parts) == call["function"]["arguments"]
    assert len(parts) > 3, "as they come"


def test_a_template_that_closes_the_tags_leaves_no_thinking(thinker: Server) -> None:
    reply = ask(thinker, chat_template_kwargs={"enable_thinking": False}, thinking_token_budget=BUDGET,
                max_tokens=5).json()
    message = reply["choices"][0]["message"]
    assert message["content"] and "reasoning" not in message


@pytest.mark.parametrize(("budget", "says"), [(5, "no tags in which it thinks"), (-2, "from 0 to 1000000, or -1")])
def test_a_budget_that_cannot_be_kept_is_refused(budget: int, says: str, server: Server) -> None:
    reply = ask(server, thinking_token_budget=budget)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "thinking_token_budget")
    assert says in reply.json()["error"]["message"]
    assert ask(server, thinking_token_budget=-1, max_tokens=2).status_code == 200
