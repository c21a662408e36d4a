"""No request dies with the engine: killed mid-stream and started again, it gives the tokens it would have given."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import msgspec
import pytest

from engine import AsyncLLMEngine, EngineArgs, SamplingParams
from engine.errors import EngineDeadError, InvalidRequestError, OverloadedError

ARGS = EngineArgs(dtype="float32", max_model_len=512, kv_cache_memory_bytes=64 << 20)
PROMPT = list(range(100, 140))


def start_engine(address: str, args: EngineArgs = ARGS) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "engine", "--address", address, "--args",
                             msgspec.json.encode(args).decode()])


@contextlib.asynccontextmanager
async def engine_at(address: str, args: EngineArgs = ARGS):
    process = start_engine(address, args)
    engine = await AsyncLLMEngine.connect(address, args)
    try:
        await asyncio.wait_for(engine._client.wait_ready(), 60)
        yield engine, process
    finally:
        await engine.close()
        process.kill()
        process.wait()


def params(seed: int, max_tokens: int = 60) -> SamplingParams:
    return SamplingParams(temperature=0.9, top_p=0.95, seed=seed, max_tokens=max_tokens, ignore_eos=True)


async def tokens_of(engine, seed: int, started: asyncio.Event | None = None, max_tokens: int = 60) -> list[int]:
    stream = await engine.submit(PROMPT, params(seed, max_tokens), f"request-{seed}")
    tokens: list[int] = []
    async for update in stream:
        tokens += update.token_ids
        if started is not None and len(tokens) >= 5:
            started.set()
    return tokens


async def test_streams_go_on_after_sigkill(tmp_path):
    address = f"ipc://{tmp_path}/engine.sock"
    async with engine_at(address) as (engine, process):
        undisturbed = [await tokens_of(engine, seed) for seed in range(3)]
        started = [asyncio.Event() for _ in range(3)]
        tasks = [asyncio.create_task(tokens_of(engine, seed, started[seed])) for seed in range(3)]
        for event in started:
            await event.wait()
        process.kill()
        process.wait()
        second = start_engine(address)
        try:
            assert await asyncio.wait_for(asyncio.gather(*tasks), 60) == undisturbed
            assert engine.num_restarts == 1
        finally:
            second.kill()
            second.wait()


async def test_a_request_at_two_crashes_in_a_row_is_failed(tmp_path):
    address = f"ipc://{tmp_path}/engine.sock"
    async with engine_at(address) as (engine, process):
        for attempt in range(2):
            started = asyncio.Event()
            if attempt == 0:
                task = asyncio.create_task(tokens_of(engine, 1, started, max_tokens=400))
                await started.wait()
            process.kill()
            process.wait()
            if attempt == 0:
                process = start_engine(address)
                while engine.num_restarts == 0:
                    await asyncio.sleep(0.05)
        with pytest.raises(EngineDeadError, match="given up"):
            await asyncio.wait_for(task, 10)


async def test_leaving_a_stream_frees_its_blocks(tmp_path):
    async with engine_at(f"ipc://{tmp_path}/engine.sock") as (engine, _):
        stream = await engine.submit(PROMPT, params(1, 400), "left")
        await stream.__anext__()
        await stream.aclose()
        for _ in range(50):
            await asyncio.sleep(0.1)
            if engine.status is not None and engine.status.num_running == 0 and engine.status.kv_usage == 0:
                return
        pytest.fail(f"still running: {engine.status}")


async def test_what_cannot_be_served_is_refused_with_its_limit(tmp_path):
    args = EngineArgs(dtype="float32", max_model_len=512, num_gpu_blocks_override=8, max_queued_requests=2)
    async with engine_at(f"ipc://{tmp_path}/engine.sock", args) as (engine, _):
        with pytest.raises(InvalidRequestError, match="maximum context length is 512"):
            await engine.submit([5] * 512, params(1), "too long for the model")
        with pytest.raises(InvalidRequestError, match="KV cache"):
            await engine.submit([5] * 200, params(1), "too long for the cache")
        with pytest.raises(InvalidRequestError, match="ids are 0 to 49151"):
            await engine.submit([49152], params(1), "no such token")
        with pytest.raises(OverloadedError, match="max-queued-requests is 2"):
            await engine.submit([5], SamplingParams(n=3), "too many")


async def test_sigterm_ends_the_engine_with_zero(tmp_path):
    process = start_engine(f"ipc://{tmp_path}/engine.sock")
    await asyncio.sleep(1.5)
    os.kill(process.pid, signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 30) == 0


@pytest.mark.parametrize(("arguments", "code"), [('{"dtype": "int4"}', 2), ('{"no_such_flag": 1}', 2),
                                                 ('{"model": "/no/such/model"}', 2)])
def test_refused_configuration_exits_with_its_code(tmp_path, arguments, code):
    run = subprocess.run([sys.executable, "-m", "engine", "--address", f"ipc://{tmp_path}/e.sock", "--args", arguments],
                         capture_output=True, text=True, timeout=60)
    assert run.returncode == code, run.stderr
