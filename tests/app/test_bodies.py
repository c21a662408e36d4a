"""What bodies cost those who did not send them: time of the event loop, and memory."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from quire.app.middleware.body_limit import MOST_BODIES
from tests.app.fake_engine import FakeEngine

JSON = {"content-type": "application/json"}
NUMBERS = b"[" + b"1e308," * 500_000 + b"1]"
MESSAGE = b'{"messages":[{"role":"user","content":"x","annotations":%s}]}'
PARTS = b"[" + b'{"type":"text","text":""},' * 15_000 + b'{"type":"text","text":""}]'


@pytest.fixture
async def roomy(make_app: Callable[..., Starlette]) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(max_body_bytes=2**23)
    async with app.router.lifespan_context(app), _client(app) as client:
        yield client


def _client(app: Starlette) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


async def longest_pause(work: Any) -> tuple[Any, float]:
    """What `work` gives, and the longest time that nothing else ran meanwhile."""
    longest_s, last = 0.0, time.perf_counter()

    async def tick() -> None:
        nonlocal longest_s, last
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest_s, last = max(longest_s, now - last), now

    ticking = asyncio.create_task(tick())
    try:
        return await work, longest_s
    finally:
        ticking.cancel()


@pytest.mark.parametrize(("path", "body", "status"), [
    ("/v1/chat/completions", MESSAGE % NUMBERS, 200), ("/tokenize", MESSAGE % NUMBERS, 200),
    ("/v1/chat/completions", b'{"messages":[{"role":"user","content":%s}]}' % PARTS, 400),
    ("/v1/chat/completions", b'{"messages":[%s0],"n":0}' % (b'{"role":"user","content":"x"},' * 4000), 400),
    ("/v1/chat/completions", b'{"messages":[],"chat_template_kwargs":{"a":%s}}' % NUMBERS[-60_000:].replace(
        b"1", b"[1", 1), 400),
    ("/v1/chat/completions", b'{%s"a":1}' % b"".join(b'"%d":1,' % i for i in range(32_000)), 400),
    ("/v1/completions", b'{"prompt":%s}' % NUMBERS, 400),
    ("/v1/completions", b'{"prompt":"%s"}' % (b"\\n" * 2_000_000), 400),
    ("/detokenize", b'{"tokens":%s}' % NUMBERS[:900_000].removesuffix(b",").__add__(b"0]"), 400),
], ids=range(9))
async def test_no_body_holds_the_event_loop(roomy: httpx.AsyncClient, path: str, body: bytes, status: int) -> None:
    """It is held for less than 20 ms; the rest is room for a busy machine. Undivided, numbers take 8 s."""
    reply, longest_s = await longest_pause(roomy.post(path, content=body, headers=JSON))
    assert reply.status_code == status, reply.text[:300]
    assert longest_s < 0.15


async def test_a_body_is_let_go_of_before_the_reply(roomy: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.gate.clear()
    padding = "x" * 10**6
    bodies = [("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "user": padding}),
              ("/v1/completions", {"prompt": "x", "user": padding}), ("/v1/completions", {"prompt": "x", "stream": True,
                                                                                        "metadata": [padding]})]
    tracemalloc.start()
    try:
        tasks = []
        for path, body in bodies * 8:
            fake.gate.clear()
            tasks.append(asyncio.create_task(roomy.post(path, content=json.dumps(body).encode(), headers=JSON)))
            while len(fake.submitted) < len(tasks):
                await asyncio.sleep(0.001)
        requests_hold = 24 * 10**6  # which the client keeps
        assert tracemalloc.get_traced_memory()[0] < requests_hold + 5 * 10**6
        fake.gate.set()
        assert {reply.status_code for reply in await asyncio.gather(*tasks)} == {200}
    finally:
        tracemalloc.stop()


async def test_bodies_on_their_way_have_one_budget(make_app: Callable[..., Starlette], fake: FakeEngine) -> None:
    app = make_app(max_body_bytes=2048)
    go = asyncio.Event()
    waiting = 0

    async def slowly() -> AsyncIterator[bytes]:
        nonlocal waiting
        yield b'{"prompt":"x","user":"' + b"x" * 2000
        waiting += 1
        await go.wait()
        yield b'"}'

    async with app.router.lifespan_context(app), _client(app) as client:
        tasks = [asyncio.create_task(client.post("/v1/completions", content=slowly(), headers=JSON))
                 for _ in range(MOST_BODIES)]
        while waiting < MOST_BODIES:
            await asyncio.sleep(0.001)
        refused = await client.post("/v1/completions", content=b'{"prompt":"%s"}' % (b"x" * 1000), headers=JSON)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert "--max-body-bytes" in refused.json()["error"]["message"]
        fake.gate.clear()
        go.set()
        while len(fake.submitted) < MOST_BODIES:
            await asyncio.sleep(0.001)
        running = asyncio.create_task(client.post("/v1/completions", content=b'{"prompt":"x"}', headers=JSON))
        while len(fake.submitted) < MOST_BODIES + 1:  # those that run hold nothing
            await asyncio.sleep(0.001)
        fake.gate.set()
        assert {reply.status_code for reply in await asyncio.gather(running, *tasks)} == {200}
