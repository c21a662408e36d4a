"""POST /generate: lines of JSON, and what a failure in their midst looks like."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from quire.app.endpoints import generate
from tests.app.fake_engine import FakeEngine


async def post(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/generate", json=body)


def lines(reply: httpx.Response) -> list[Any]:
    return [json.loads(line) for line in reply.text.split("\n") if line]


async def test_each_line_has_all_texts_so_far(client: httpx.AsyncClient) -> None:
    whole = await post(client, prompt="Say: ", n=2)
    assert whole.json() == {"text": ["Say: Hi 👋!", "Say: Hi 👋!"]}
    streamed = await post(client, prompt="Say: ", n=2, stream=True)
    assert streamed.headers["content-type"] == "application/x-ndjson"
    found = lines(streamed)
    assert found[0] == {"text": ["Say: H", "Say: "]}
    assert len(found) == 10
    assert found[-1] == whole.json()


async def test_a_prompt_of_ids_is_shown_as_text(client: httpx.AsyncClient) -> None:
    assert (await post(client, prompt=[65, 66])).json() == {"text": ["ABHi 👋!"]}


async def test_of_a_long_text_lines_are_fewer(client: httpx.AsyncClient, fake: FakeEngine,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "_GROWTH", 10)
    fake.text = "x" * 16
    found = lines(await post(client, prompt="p" * 40, stream=True))
    assert [len(line["text"][0]) for line in found] == [44, 49, 54, 56], "each a tenth longer, and the last"


async def test_a_failure_is_the_last_line(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.fails_after = 2
    reply = await post(client, prompt="a", stream=True)
    *_, before, last = lines(reply)
    assert before == {"text": ["aHi"]}
    assert last["error"]["code"] == 500
    assert "data:" not in reply.text and reply.text.endswith("\n")
    fake.fails_after = 0
    assert (await post(client, prompt="a", stream=True)).status_code == 500
