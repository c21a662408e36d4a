"""The engine's door, through a real engine process and the client that HTTP workers have."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from quire import AsyncLLMEngine, SamplingParams
from quire.engine.errors import InvalidRequestError, OverloadedError
from quire.engine.frontend.async_llm import Stream
from quire.engine.messages import KeyLimits, Status
from tests.faults.engines import ARGS as DEFAULTS
from tests.faults.engines import PROMPT, engine_at, params, tokens_of

ARGS = dataclasses.replace(DEFAULTS, max_num_seqs=1, max_queued_requests=3, max_queued_tokens=200)
OCCUPANT = KeyLimits("occupant")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncLLMEngine]:
    """One sample runs at a time, three wait."""
    address = f"ipc://{tmp_path_factory.mktemp('door')}/engine.sock"
    async with engine_at(address, ARGS) as (engine, _):
        yield engine


pytestmark = pytest.mark.asyncio(loop_scope="module")


@contextlib.asynccontextmanager
async def occupied(engine: AsyncLLMEngine, key: KeyLimits = OCCUPANT) -> AsyncIterator[Stream]:
    """Its one place is taken."""
    stream = await engine.submit(PROMPT, params(0, 400), "occupant", key=key)
    try:
        await stream.__anext__()
        yield stream
    finally:
        await stream.aclose()


async def status(engine: AsyncLLMEngine, holds: Callable[[Status], bool]) -> Status:
    for _ in range(100):
        found = engine.engines[0].status
        if found is not None and holds(found):
            return found
        await asyncio.sleep(0.1)
    pytest.fail(f"did not come about: {engine.engines[0].status}")


async def num_tokens(stream: Stream) -> int:
    return sum([len(update.token_ids) async for update in stream])


async def refusal(attempt: Awaitable[object]) -> OverloadedError:
    with pytest.raises(OverloadedError) as caught:
        await attempt
    return caught.value


async def test_what_can_never_be_served_is_refused_with_its_limit(engine: AsyncLLMEngine) -> None:
    with pytest.raises(InvalidRequestError, match="maximum context length is 512"):
        await engine.submit([5] * 512, params(1), "too long for the model")
    with pytest.raises(InvalidRequestError, match="ids are 0 to 49151"):
        await engine.submit([49152], params(1), "no such token")


async def test_a_full_queue_refuses_and_takes_again(engine: AsyncLLMEngine) -> None:
    async with occupied(engine):
        waiting = [asyncio.create_task(tokens_of(engine, seed, max_tokens=2)) for seed in range(3)]
        now = await status(engine, lambda s: s.num_waiting == 3)
        assert now.num_waiting_tokens == 3 * len(PROMPT)
        error = await refusal(engine.submit([5], SamplingParams(), "one too many"))
        assert (error.reason, error.own_limit) == ("queue_requests", False)
        assert error.retry_after_s >= 1
    await asyncio.gather(*waiting)


async def test_queued_tokens_are_limited(engine: AsyncLLMEngine) -> None:
    async with occupied(engine):
        waiting = asyncio.create_task(tokens_of(engine, 1, max_tokens=2, prompt=[7] * 150))
        await status(engine, lambda s: s.num_waiting_tokens == 150)  # what waited in the test before had other prompts
        assert (await refusal(engine.submit([7] * 51, params(1), "too long to wait"))).reason == "queue_tokens"
    await waiting


async def test_a_request_that_no_step_took_up_in_time_is_refused_late(engine: AsyncLLMEngine) -> None:
    async with occupied(engine) as occupant:
        stream = await engine.submit(PROMPT, params(1), "waits", queue_timeout_s=0.5)
        assert stream.started_at is None
        error = await refusal(stream.__anext__())
        assert (error.reason, error.own_limit) == ("queue_timeout", False)
        assert "within 0.5 s" in error.message
        await occupant.__anext__()
        assert occupant.started_at is not None
        await status(engine, lambda s: (s.num_running, s.num_waiting) == (1, 0))
    stream = await engine.submit(PROMPT, params(1, 60), "runs", queue_timeout_s=0.4)
    assert await num_tokens(stream) == 60, "a request that was taken up in time may take as long as it needs"


async def test_a_keys_concurrency_ends_with_its_requests(engine: AsyncLLMEngine) -> None:
    key = KeyLimits("narrow", max_concurrent=1)
    async with occupied(engine, key):
        error = await refusal(engine.submit(PROMPT, params(1, 2), "second", key=key))
        assert (error.reason, error.own_limit) == ("key_concurrency", True)
        other = await engine.submit(PROMPT, params(1, 2), "other", key=KeyLimits("other", max_concurrent=1))
    assert await num_tokens(other) == 2
    stream = await engine.submit(PROMPT, params(1, 2), "third", key=key)
    assert await num_tokens(stream) == 2


async def test_tokens_a_minute_count_prompt_and_output(engine: AsyncLLMEngine) -> None:
    key = KeyLimits("thrifty", requests_per_minute=100, tokens_per_minute=100)
    began = time.monotonic()
    stream = await engine.submit(PROMPT, params(1, 30), "first", key=key)
    assert stream.rate is not None
    assert (stream.rate.remaining_requests, stream.rate.remaining_tokens) == (99, 100 - len(PROMPT))
    assert await num_tokens(stream) == 30
    stream = await engine.submit(PROMPT, params(1, 60), "second", key=key)
    given_back = (time.monotonic() - began) * 100 / 60
    assert stream.rate is not None
    assert 0 <= stream.rate.remaining_tokens <= max(0, 100 - 2 * len(PROMPT) - 30 + given_back)
    assert await num_tokens(stream) == 60  # half a minute of debt
    error = await refusal(engine.submit(PROMPT, params(1), "third", key=key))
    assert (error.reason, error.own_limit) == ("key_tokens", True)
    assert error.closed_s == error.retry_after_s
    assert error.rate is not None
    assert error.rate.remaining_tokens == 0


async def test_a_key_that_floods_does_not_hold_up_another(engine: AsyncLLMEngine) -> None:
    order: list[str] = []

    async def request(name: str) -> None:
        stream = await engine.submit([len(order) + 5] * 8, params(1, 2), name, key=KeyLimits(name))
        async for _ in stream:
            pass
        order.append(name)

    async with occupied(engine, KeyLimits("flood")):
        tasks = [asyncio.create_task(request("flood")) for _ in range(2)]
        await status(engine, lambda s: s.num_waiting == 2)
        tasks.append(asyncio.create_task(request("single")))
        await status(engine, lambda s: s.num_waiting == 3)
    await asyncio.gather(*tasks)
    assert order.index("single") <= 1


async def test_what_steps_are_like_is_counted(engine: AsyncLLMEngine) -> None:
    before = await status(engine, lambda s: s.num_running == 0)
    await tokens_of(engine, 1, max_tokens=20)
    after = await status(engine, lambda s: s.num_steps >= before.num_steps + 20 and s.num_running == 0)
    new_steps = after.num_steps - before.num_steps
    for now, then in ((after.step_samples, before.step_samples), (after.step_tokens, before.step_tokens)):
        assert now is not None and then is not None
        assert sum(now.counts) - sum(then.counts) == new_steps
        assert len(now.counts) == len(now.bounds) + 1
    assert after.step_seconds is not None and before.step_seconds is not None
    assert 0 < sum(after.step_seconds.counts) - sum(before.step_seconds.counts) < new_steps
    assert after.step_samples is not None and before.step_samples is not None
    assert after.step_samples.total - before.step_samples.total == new_steps, "one sample at a time"
