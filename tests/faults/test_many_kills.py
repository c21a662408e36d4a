"""Five hundred streams through one server whose engines are killed thirty times: none fails, every text is the same."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import openai
import pytest

from tests.e2e.server import KEY, Server, serving, until

NUM_STREAMS, NUM_AT_ONCE, NUM_KILLS = 500, 48, 30
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "small", "red", "birds", "by", "that", "old", "house"]


@dataclass
class Outcome:
    text: str
    finish_reason: str | None
    num_tokens: int


class Load:
    """The same requests each time; counts the pieces that came so far."""

    def __init__(self, server: Server, model: str) -> None:
        self._server = server
        self._model = model
        self.num_pieces = 0
        self.failures: list[str] = []

    async def run(self) -> list[Outcome | None]:
        limit = asyncio.Semaphore(NUM_AT_ONCE)
        async with openai.AsyncOpenAI(base_url=f"{self._server.url}/v1", api_key=KEY, max_retries=0,
                                      timeout=600) as client:
            return await asyncio.gather(*(self._one(client, limit, number) for number in range(NUM_STREAMS)))

    async def _one(self, client: openai.AsyncOpenAI, limit: asyncio.Semaphore, number: int) -> Outcome | None:
        rng = random.Random(number)
        prompt = " ".join(rng.choices(WORDS, k=rng.randint(3, 30)))
        outcome = Outcome("", None, 0)
        async with limit:
            try:
                stream = await client.completions.create(
                    model=self._model, prompt=prompt, stream=True, seed=number, temperature=0.8, top_p=0.95,
                    max_tokens=rng.randint(20, 40), stream_options={"include_usage": True})
                async for chunk in stream:
                    self.num_pieces += 1
                    for choice in chunk.choices:
                        outcome.text += choice.text
                        outcome.finish_reason = choice.finish_reason or outcome.finish_reason
                    if chunk.usage is not None:
                        outcome.num_tokens = chunk.usage.completion_tokens
            except openai.APIError as error:
                self.failures.append(f"request {number}: {error!r}")
                return None
        return outcome


async def kill_at_random(server: Server, load: Load, num_pieces: int) -> int:
    """Spread over the whole run, a fifth of them while the next engine still loads or has just begun; how many."""
    rng = random.Random(2)
    moments = sorted(rng.uniform(0.02, 0.9) * num_pieces for _ in range(NUM_KILLS * 4 // 5))
    again = [rng.uniform(0.2, 6.0) for _ in range(NUM_KILLS - len(moments))]
    num_kills = 0
    for number, moment in enumerate(moments):
        while load.num_pieces < moment:
            await asyncio.sleep(0.01)
        await asyncio.sleep(rng.uniform(0.0, 0.5))
        num_kills += await kill_engine(server, rng)
        if number % 4 == 3 and again:
            await asyncio.sleep(again.pop())
            num_kills += await kill_engine(server, rng)
    return num_kills


async def kill_engine(server: Server, rng: random.Random) -> int:
    while not (pids := server.pids()["engine"]):
        await asyncio.sleep(0.01)
    pid = rng.choice(pids)
    os.kill(pid, signal.SIGKILL)
    while pid in server.pids()["engine"]:
        await asyncio.sleep(0.01)
    return 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("num_engines", [1, 2])
async def test_no_request_fails_and_no_text_changes(num_engines: int) -> None:
    with serving("-asc", "2", "--max-engine-restarts", "100", "--dtype", "float32", "--data-parallel-size",
                 str(num_engines)) as server:
        model = server.get("/v1/models").json()["data"][0]["id"]
        began = time.monotonic()
        undisturbed = Load(server, model)
        expected = await undisturbed.run()
        assert not undisturbed.failures
        undisturbed_s, began = time.monotonic() - began, time.monotonic()
        disturbed = Load(server, model)
        outcomes, num_kills = await asyncio.gather(
            disturbed.run(), kill_at_random(server, disturbed, undisturbed.num_pieces))
        took_s = time.monotonic() - began
        resumed = sum(event["requests"] for event in server.events("requests resubmitted"))
        different = [n for n, (a, b) in enumerate(zip(expected, outcomes)) if b is not None and a != b]
        print(f"\n{NUM_STREAMS} streams, {num_kills} kills: {len(disturbed.failures)} failed, {len(different)} differ; "
              f"{resumed} resubmissions; {took_s:.0f} s, undisturbed {undisturbed_s:.0f} s")
        assert num_kills == len(server.events("engine ended")) == NUM_KILLS
        assert not disturbed.failures
        assert not different, [(expected[n], outcomes[n]) for n in different[:3]]
        assert server.process.poll() is None


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_long_prompt_is_not_blamed_for_kills_that_strike_it_again_and_again() -> None:
    """Each kill finds it alone and without a token, elsewhere in its prompt."""
    with serving("--max-engine-restarts", "100", "--max-num-batched-tokens", "32", "--max-model-len", "4096",
                 "--kv-cache-memory-bytes", "300M", "--no-enable-prefix-caching") as server:
        request = {"prompt": [7 + number % 900 for number in range(3500)], "max_tokens": 5, "temperature": 0}

        def ask() -> httpx.Response:
            return httpx.post(f"{server.url}/v1/completions", json=request, timeout=300,
                              headers={"authorization": f"Bearer {KEY}"})

        with ThreadPoolExecutor(1) as pool:
            expected = pool.submit(ask).result().json()["choices"]
            struck = pool.submit(ask)
            for number, seconds in enumerate((2.0, 1.0, 3.0, 1.5, 2.5, 0.5)):
                until(lambda number=number: len(server.events("requests resubmitted")) == number, 60)
                time.sleep(seconds)
                assert not struck.done(), "killed while it was read"
                os.kill(server.pids()["engine"][0], signal.SIGKILL)
                until(lambda number=number: len(server.events("engine ended")) == number + 1)
            reply = struck.result()
        assert reply.status_code == 200, reply.text
        assert reply.json()["choices"] == expected
