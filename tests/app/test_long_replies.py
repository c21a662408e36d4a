"""A long reply that is sent whole does not hold up others when it is put together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette

from quire.app.json_pieces import all_as_raw
from quire.engine.frontend.generation import SampleUpdate
from quire.engine.messages import TokenLogprobs
from tests.app.fake_engine import INFO, FakeEngine

NUM_TOKENS = 4000


def _produce(self: Any, params: Any) -> Any:
    async def updates() -> Any:
        top = TokenLogprobs(-0.5, 1, list(range(97, 117)), [-float(i) for i in range(20)])
        for position in range(NUM_TOKENS):
            if position % 10 == 0:
                await asyncio.sleep(0)
            yield SampleUpdate(0, "a", [97], [top], "length" if position == NUM_TOKENS - 1 else None)
    return updates()


@pytest.mark.parametrize(("path", "body"), [
    ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 20}),
    ("completions", {"prompt": "x", "logprobs": 20})])
async def test_logprobs_are_encoded_as_they_come(make_app: Callable[..., Starlette], fake: FakeEngine, path: str,
                                                 body: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is encoded in one call at the end was JSON before: 10 times faster than making it of objects."""
    monkeypatch.setattr("tests.app.fake_engine.FakeStream._produce", _produce)
    fake.info = msgspec.structs.replace(INFO, max_model_len=NUM_TOKENS + 10)
    app = make_app()
    took_s = []
    for endpoint in ("chat", "completions"):
        encode = msgspec.json.encode

        def timed(value: Any, encode: Any = encode) -> bytes:
            begun = time.thread_time()
            encoded: bytes = encode(value)
            took_s.append(time.thread_time() - begun)
            return encoded

        monkeypatch.setattr(f"quire.app.endpoints.{endpoint}._encode", timed)
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        reply = await client.post(f"/v1/{path}", json=body | {"max_tokens": NUM_TOKENS})
    assert reply.status_code == 200, reply.text[:300]
    logprobs = reply.json()["choices"][0]["logprobs"]
    assert len(logprobs["content" if path.startswith("chat") else "top_logprobs"]) == NUM_TOKENS
    assert max(took_s) < 0.02


async def test_choices_are_encoded_one_by_one() -> None:
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    found = await all_as_raw(["a" * 100_000] * 5)
    task.cancel()
    assert [bytes(raw) for raw in found] == [b'"' + b"a" * 100_000 + b'"'] * 5
    assert others == 5
