"""POST /generate as the documents show it, whole and streamed; beam search there and on OpenAI's paths."""

from __future__ import annotations

import itertools
import json
from typing import Any

import httpx
import pytest

from quire.engine.config import DEFAULT_MODEL
from tests.e2e.server import KEY, Server

EXAMPLE: dict[str, Any] = {"prompt": "San Francisco is a", "use_beam_search": True, "n": 4, "temperature": 0}
HEADERS = {"authorization": f"Bearer {KEY}"}


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, headers=HEADERS, json=body, timeout=60)


@pytest.fixture(scope="module")
def texts(server: Server) -> list[str]:
    reply = post(server, "/generate", **EXAMPLE)
    assert reply.status_code == 200, reply.text
    assert reply.json().keys() == {"text"}
    return list(reply.json()["text"])


def test_the_documents_command_line_works(server: Server, texts: list[str]) -> None:
    """`curl http://localhost:8000/generate -d '{...}'`: curl says by itself that what it sends is a form."""
    reply = httpx.post(f"{server.url}/generate", timeout=60, content="""{
  "prompt": "San Francisco is a",
  "use_beam_search": true,
  "n": 4,
  "temperature": 0
}""", headers={**HEADERS, "content-type": "application/x-www-form-urlencoded", "user-agent": "curl/8"})
    assert reply.json() == {"text": texts}
    assert len(set(texts)) == 4
    assert all(text.startswith(EXAMPLE["prompt"]) and len(text) > 30 for text in texts)


def test_a_page_in_a_browser_may_not_call_its_json_a_form(server: Server) -> None:
    reply = httpx.post(f"{server.url}/generate", content=json.dumps(EXAMPLE), headers={
        **HEADERS, "content-type": "application/x-www-form-urlencoded", "origin": "http://example.com"})
    assert reply.status_code == 400
    assert "application/json" in reply.json()["error"]["message"]


def test_a_streamed_beam_search_is_one_line(server: Server, texts: list[str]) -> None:
    with httpx.stream("POST", f"{server.url}/generate", headers=HEADERS, json={**EXAMPLE, "stream": True},
                      timeout=60) as reply:
        lines = [json.loads(line) for line in reply.iter_lines() if line]
    assert lines == [{"text": texts}]


def test_streamed_samples_grow_line_by_line(server: Server) -> None:
    wish = {"prompt": "Once upon a time", "max_tokens": 12, "n": 2, "seed": 3}
    whole = post(server, "/generate", **wish).json()["text"]
    with httpx.stream("POST", f"{server.url}/generate", headers=HEADERS, json={**wish, "stream": True},
                      timeout=60) as reply:
        lines = [json.loads(line)["text"] for line in reply.iter_lines() if line]
    assert lines[-1] == whole
    assert len(lines) > 12
    for before, after in itertools.pairwise(lines):
        assert all(new.startswith(old) for old, new in zip(before, after))


def test_openais_paths_give_the_same_beams(server: Server, texts: list[str]) -> None:
    client = server.client()
    wish: Any = {"model": DEFAULT_MODEL, "prompt": EXAMPLE["prompt"], "n": 4, "temperature": 0,
                 "extra_body": {"use_beam_search": True}}
    whole = client.completions.create(**wish)
    assert [EXAMPLE["prompt"] + choice.text for choice in whole.choices] == texts
    assert whole.usage is not None and whole.usage.completion_tokens == 4 * 16
    chunks = client.completions.create(**wish, stream=True)
    pieces = [(choice.index, choice.text, choice.finish_reason) for chunk in chunks for choice in chunk.choices
              if choice.text]
    assert pieces == [(choice.index, choice.text, choice.finish_reason) for choice in whole.choices]
    best = client.completions.create(**{**wish, "n": 1, "extra_body": {"use_beam_search": True, "best_of": 4}})
    assert [choice.text for choice in best.choices] == [whole.choices[0].text]
    chat = post(server, "/v1/chat/completions", messages=[{"role": "user", "content": "Name a colour."}], n=3,
                use_beam_search=True, max_tokens=8, logprobs=True, top_logprobs=1).json()
    assert len({choice["message"]["content"] for choice in chat["choices"]}) == 3
    assert all(choice["logprobs"]["content"] for choice in chat["choices"])


@pytest.mark.parametrize(("wish", "param"), [
    ({"prompt": ["a", "b"]}, "prompt"), ({"logprobs": 1}, "logprobs"), ({"echo": False}, "echo"),
    ({"max_tokens": 0}, "max_tokens"), ({"temperature": 0.5}, "temperature"), ({"stop": ["."]}, "stop"),
    ({"n": 100, "prompt": "a" * 20_000}, "echo"), ({"top_n": 4}, "top_n"),
])
def test_what_cannot_be_served_is_refused_by_name(wish: dict[str, Any], param: str, server: Server) -> None:
    reply = post(server, "/generate", **{**EXAMPLE, **wish})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
