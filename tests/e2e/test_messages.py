"""Anthropic's SDK against the real server, engine and weights."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx
import jsonschema

from quire.engine.config import DEFAULT_MODEL
from tests.e2e.server import KEY, Server

ASK: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
SYSTEM: list[Any] = [{"type": "text", "text": "You are a helpful assistant.", "cache_control": {"type": "ephemeral"}}]
GREEDY = {"temperature": 0}
SCHEMA: dict[str, Any] = {"type": "object", "additionalProperties": False, "required": ["city", "unit"], "properties": {
    "city": {"type": "string", "maxLength": 10}, "unit": {"enum": ["C", "F"]}}}


def test_anthropics_sdk_talks_streams_counts_and_calls(server: Server) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0) as client:
        ask: Any = {"model": DEFAULT_MODEL, "system": SYSTEM, "messages": ASK}
        whole = client.messages.create(**ask, max_tokens=30, extra_body=GREEDY)
        assert whole.content[0].type == "text" and "Paris" in whole.content[0].text
        assert whole.stop_reason == "end_turn"
        with client.messages.stream(**ask, max_tokens=30, extra_body=GREEDY) as stream:
            assert "".join(stream.text_stream) == whole.content[0].text
            usage = stream.get_final_message().usage
        assert usage.output_tokens == whole.usage.output_tokens
        assert usage.cache_read_input_tokens, "the prompt was there before"
        assert client.messages.count_tokens(**ask).input_tokens == usage.input_tokens + usage.cache_read_input_tokens

        weather: Any = {"name": "weather", "description": "Of a city", "input_schema": SCHEMA}
        ask |= {"tools": [weather], "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
                "max_tokens": 4000}  # more than the context has
        with client.messages.stream(**ask, extra_body=GREEDY) as stream:
            reply = stream.get_final_message()
        [call] = reply.content
        assert (reply.stop_reason, call.type) == ("tool_use", "tool_use")
        jsonschema.validate(call.input, SCHEMA)  # type: ignore[union-attr]
        result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "21 C"}  # type: ignore[union-attr]
        after = client.messages.create(**ask | {
            "messages": [*ASK, reply.to_param(), {"role": "user", "content": [result]}],
            "tool_choice": {"type": "none"}, "max_tokens": 5})
        assert after.stop_reason in ("end_turn", "max_tokens")


def test_both_headers_of_a_key_are_taken(server: Server) -> None:
    body = {"max_tokens": 1, "messages": ASK}
    for headers, status in (({"x-api-key": KEY}, 200), ({"authorization": f"Bearer {KEY}"}, 200),
                            ({"x-api-key": "wrong"}, 401), ({}, 401)):
        headers = headers | {"anthropic-version": "2023-06-01"}
        reply = httpx.post(f"{server.url}/v1/messages", json=body, headers=headers, timeout=60)
        assert reply.status_code == status
        assert reply.json()["type"] == ("message" if status == 200 else "error")
