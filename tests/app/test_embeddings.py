"""The shape of /v1/embeddings' replies, and what becomes of inputs when one of them is refused or late."""

from __future__ import annotations

import asyncio
import base64
import struct

import httpx

from quire.engine.errors import OverloadedError
from tests.app.fake_engine import FakeEngine


async def test_each_input_has_its_vector_at_its_place(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/embeddings", json={"model": "alias", "input": ["abcdef", "z"], "user": "u"})
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert body.pop("id") == f"embd-{reply.headers['x-request-id']}"
    assert body.pop("created") > 1_700_000_000
    assert body == {"object": "list", "model": "alias", "usage": {"prompt_tokens": 7, "total_tokens": 7}, "data": [
        {"object": "embedding", "index": 0, "embedding": [97.0, 98.0, 99.0, 100.0]},
        {"object": "embedding", "index": 1, "embedding": [122.0]}]}


async def test_base64_holds_float32_with_the_lowest_byte_first(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/embeddings", json={"input": [7, 8, 9], "encoding_format": "base64",
                                                      "dimensions": 2})
    assert base64.b64decode(reply.json()["data"][0]["embedding"]) == struct.pack("<2f", 7, 8)


async def test_where_one_input_is_refused_none_runs_on(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.refuse, fake.refuses_after = OverloadedError("The queue is full.", 3.0, reason="queue_requests"), 2
    reply = await client.post("/v1/embeddings", json={"input": ["a", "b", "c"]})
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "3"
    assert [stream.closed for stream in fake.streams] == [True, True]


async def test_the_first_vector_must_be_there_in_time(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.gate.clear()
    reply = await client.post("/v1/embeddings", json={"input": ["a", "b"]}, headers={"x-ttft-timeout": "0.05"})
    assert reply.status_code == 504
    assert all(stream.closed for stream in fake.streams)


async def test_metrics_count_inputs(client: httpx.AsyncClient) -> None:
    async def values() -> list[float]:
        """Ended inputs, prompt tokens, and requests that had outputs."""
        lines = (await client.get("/metrics")).text.splitlines()
        names = ("vllm:request_success_total", "vllm:request_prompt_tokens_sum", "vllm:request_generation_tokens_count")
        return [sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)) for name in names]

    before = await values()
    await asyncio.gather(*(client.post("/v1/embeddings", json={"input": ["ab", "cd"]}) for _ in range(2)))
    assert [after - then for after, then in zip(await values(), before)] == [4, 8, 0]
