"""Engine processes without a server around them, and the client that HTTP workers have."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator

import msgspec

from quire import AsyncLLMEngine, EngineArgs, SamplingParams

ARGS = EngineArgs(dtype="float32", max_model_len=512, kv_cache_memory_bytes=64 << 20, cpu_threads=1)
PROMPT = list(range(100, 140))
PROGRAM, FRAGILE_PROGRAM = "quire.engine", "tests.faults.fragile_engine"


def start_engine(address: str, args: EngineArgs = ARGS, program: str = PROGRAM) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", program, "--address", address, "--args",
                             msgspec.json.encode(args).decode()])


async def connected(address: str, args: EngineArgs = ARGS) -> AsyncLLMEngine:
    engine = await AsyncLLMEngine.connect([address], args)
    assert engine._group is not None
    await asyncio.wait_for(engine._group.wait_ready(), 90)
    return engine


@contextlib.asynccontextmanager
async def engine_at(address: str, args: EngineArgs = ARGS) -> AsyncIterator[tuple[AsyncLLMEngine, subprocess.Popen]]:
    process = start_engine(address, args)
    engine = await connected(address, args)
    try:
        yield engine, process
    finally:
        await engine.close()
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def kept_running(address: str, program: str) -> AsyncIterator[list[int]]:
    """An engine that is started again whenever it ends. Yields its exit codes so far."""
    codes: list[int] = []
    process = start_engine(address, program=program)

    async def restart() -> None:
        nonlocal process
        while True:
            await asyncio.sleep(0.05)
            if process.poll() is not None:
                codes.append(process.returncode)
                process = start_engine(address, program=program)

    task = asyncio.create_task(restart())
    try:
        yield codes
    finally:
        task.cancel()
        process.kill()
        process.wait()


def params(seed: int, max_tokens: int = 60) -> SamplingParams:
    return SamplingParams(temperature=0.9, top_p=0.95, seed=seed, max_tokens=max_tokens, ignore_eos=True)


async def tokens_of(engine: AsyncLLMEngine, seed: int, started: asyncio.Event | None = None, max_tokens: int = 60,
                    prompt: list[int] = PROMPT) -> list[int]:
    """All tokens of a request; `started` is set at the fifth."""
    stream = await engine.submit(prompt, params(seed, max_tokens), f"request-{seed}")
    tokens: list[int] = []
    async for update in stream:
        tokens += update.token_ids
        if started is not None and len(tokens) >= 5:
            started.set()
    return tokens
