"""OpenAI's Responses API with its own SDK, against the real server, engine and weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from quire.engine.config import DEFAULT_MODEL
from tests.e2e.server import Server

WEATHER: Any = {"type": "function", "name": "get_weather", "description": "The weather in a city", "strict": True,
                "parameters": {"type": "object", "additionalProperties": False, "required": ["city", "unit"],
                               "properties": {"city": {"type": "string", "maxLength": 20},
                                              "unit": {"type": "string", "enum": ["C", "F"]}}}}


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


def test_a_tool_is_called_and_told_of_its_result(client: openai.OpenAI) -> None:
    history: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    wish: Any = {"model": DEFAULT_MODEL, "tools": [WEATHER], "temperature": 0, "store": False}
    reply = client.responses.create(**wish, input=history, tool_choice="required", parallel_tool_calls=False)
    with client.responses.stream(**wish, input=history, tool_choice="required", parallel_tool_calls=False) as stream:
        streamed = stream.get_final_response()
    [call], [again] = reply.output, streamed.output
    assert call.type == again.type == "function_call"
    assert (call.name, call.arguments) == (again.name, again.arguments)
    arguments = json.loads(call.arguments)
    assert (arguments["city"], arguments.keys()) == ("Paris", {"city", "unit"})
    history += [call.model_dump(), {"type": "function_call_output", "call_id": call.call_id, "output": "21 C, sunny"}]
    last = client.responses.create(**wish, input=history, tool_choice="none", max_output_tokens=8)
    assert [item.type for item in last.output] == ["message"]
    assert last.usage is not None
    assert reply.usage is not None
    assert last.usage.total_tokens == last.usage.input_tokens + last.usage.output_tokens


def test_an_answer_has_the_form_of_a_class(client: openai.OpenAI) -> None:
    wish: Any = {"model": DEFAULT_MODEL, "input": "Alice is 30. Give me her as JSON.", "temperature": 0,
                 "text_format": Person, "instructions": "You write JSON.", "max_output_tokens": 80}
    parsed = client.responses.parse(**wish).output_parsed
    assert isinstance(parsed, Person)
    with client.responses.stream(**wish) as stream:
        assert stream.get_final_response().output_parsed == parsed


def test_what_is_cut_is_the_beginning_of_what_is_not(client: openai.OpenAI) -> None:
    wish: Any = {"model": DEFAULT_MODEL, "input": "What is the capital of France?", "temperature": 0}
    whole = client.responses.create(**wish, max_output_tokens=30)
    with client.responses.stream(**wish, max_output_tokens=3) as stream:
        cut = stream.get_final_response()
    assert "Paris" in whole.output_text
    assert (cut.status, len(cut.output_text) > 0) == ("incomplete", True)
    assert whole.output_text.startswith(cut.output_text)
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
