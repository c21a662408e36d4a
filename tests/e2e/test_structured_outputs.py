"""Forms of outputs over HTTP: the fields of OpenAI's and vLLM's clients, streams, and refusals that name the place."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel

from quire.engine.config import DEFAULT_MODEL
from tests.e2e.server import KEY, Server

ASK: list[Any] = [{"role": "user", "content": "Give me a person as JSON."}]


class Person(BaseModel):
    name: str
    age: int


def ask(server: Server, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", headers={"authorization": f"Bearer {KEY}"}, timeout=60,
                      json={"messages": ASK, "max_tokens": 60, "seed": 1, **fields})


def test_openais_client_gets_objects_of_its_class(server: Server) -> None:
    reply = server.client().beta.chat.completions.parse(model=DEFAULT_MODEL, messages=ASK, max_tokens=80,
                                                        response_format=Person, temperature=0)
    assert isinstance(reply.choices[0].message.parsed, Person)
    reply = server.client().chat.completions.create(model=DEFAULT_MODEL, messages=ASK, max_tokens=100, temperature=0,
                                                    response_format={"type": "json_object"})
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(reply.choices[0].message.content or ""), dict)


def test_a_stream_brings_the_same_text(server: Server) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 10},
                                               "age": {"type": "integer", "minimum": 0, "maximum": 120}},
              "required": ["name", "age"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": schema}}
    wish: Any = {"model": DEFAULT_MODEL, "messages": ASK, "max_tokens": 80, "temperature": 0.7, "seed": 5,
                 "response_format": form}
    whole = server.client().chat.completions.create(**wish)
    chunks = server.client().chat.completions.create(**wish, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(("wish", "form"), [
    ({"structured_outputs": {"choice": ["red", "green"]}}, "red|green"),
    ({"structured_outputs": {"regex": "[A-Z]{2}[0-9]"}}, "[A-Z]{2}[0-9]"),
    ({"structured_outputs": {"json": {"const": [1]}, "disable_any_whitespace": True}}, re.escape("[1]")),
    ({"structured_outputs": {"grammar": 'root ::= "a" | "b"'}}, "a|b"),
    ({"guided_choice": ["x", "yy"]}, "x|yy"), ({"guided_regex": "a{3}"}, "aaa"),
    ({"guided_json": '{"const": 7}'}, "7"), ({"guided_grammar": 'start: "z"'}, "z"),
    ({"response_format": {"type": "structural_tag", "format": {"type": "const_string", "value": "hi"}}}, "hi"),
    ({"response_format": {"type": "text"}}, "(?s).*"),
])
def test_every_field_is_heeded(wish: dict[str, Any], form: str, server: Server) -> None:
    reply = ask(server, n=2, **wish).json()
    for choice in reply["choices"]:
        assert re.fullmatch(form, choice["message"]["content"]), reply


@pytest.mark.parametrize(("wish", "param", "says"), [
    ({"response_format": {"type": "json"}}, "response_format", "must be one of text, json_object, json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format", "schema must be"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {
        "type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}}}}, "response_format",
     'Unimplemented keys: ["uniqueItems"] (at #/properties/a of the schema)'),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs", "exactly one of"),
    ({"structured_outputs": {"jsno": {}}}, "structured_outputs", "has no 'jsno'"),
    ({"guided_regex": "a{"}, "guided_regex", "unclosed counted repetition"),
    ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex", "both ask for a form"),
    ({"guided_json": {"enum": ["x" * 400_000]}}, "guided_json", "at most"),
])
def test_what_cannot_be_followed_is_refused_by_its_field(wish: dict[str, Any], param: str, says: str,
                                                         server: Server) -> None:
    reply = ask(server, **wish)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
    assert says in reply.json()["error"]["message"]


def test_a_refusal_is_one_of_openais_errors(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="missing-one"):
        server.client().completions.create(model=DEFAULT_MODEL, prompt="a", extra_body={
            "guided_json": {"$ref": "#/$defs/missing-one"}})
