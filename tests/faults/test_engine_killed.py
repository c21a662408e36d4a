"""No request dies with the engine: killed mid-stream and started again, it gives the tokens it would have given."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quire import PoolingParams
from quire.engine.errors import PoisonRequestError
from tests.faults.engines import (
    FRAGILE_PROGRAM,
    PROMPT,
    connected,
    engine_at,
    kept_running,
    params,
    start_engine,
    tokens_of,
)
from tests.faults.fragile_engine import DEADLY_TOKEN, HUNGRY_TOKEN


@pytest.mark.slow
async def test_streams_go_on_after_sigkill(tmp_path: Path) -> None:
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


@pytest.mark.slow
async def test_embeddings_are_made_after_sigkill(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/engine.sock"
    prompts = [[100 + i, *range(200, 650)] for i in range(6)]
    async with engine_at(address) as (engine, process):
        async def vector_of(i: int) -> list[float]:
            stream = await engine.submit_embedding(prompts[i], PoolingParams(), f"request-{i}")
            accepted.set()
            assert [update.finish_reason async for update in stream] == ["stop"]
            return stream.embedding.tolist()

        accepted = asyncio.Event()
        undisturbed = [await vector_of(i) for i in (0, 5)]
        accepted.clear()
        tasks = [asyncio.create_task(vector_of(i)) for i in range(6)]
        await accepted.wait()
        process.kill()
        process.wait()
        second = start_engine(address)
        try:
            found = await asyncio.wait_for(asyncio.gather(*tasks), 60)
            assert [found[0], found[5]] == [pytest.approx(one, abs=1e-4) for one in undisturbed]
            assert engine.num_restarts == 1
        finally:
            second.kill()
            second.wait()


@pytest.mark.slow
async def test_a_deadly_request_is_given_up_at_its_second_strike_and_no_other_is(tmp_path: Path) -> None:
    """Two clients, as two HTTP workers: each has requests that strike, or are struck, together with the deadly one."""
    address = f"ipc://{tmp_path}/engine.sock"
    async with kept_running(address, FRAGILE_PROGRAM) as codes:
        engines = [await connected(address) for _ in range(2)]
        undisturbed = [await tokens_of(engines[0], seed) for seed in range(4)]
        running = [asyncio.Event() for _ in range(2)]
        tasks = [asyncio.create_task(tokens_of(engines[seed], seed, running[seed])) for seed in range(2)]
        for event in running:
            await event.wait()
        deadly = asyncio.create_task(tokens_of(engines[0], 9, prompt=[*PROMPT, DEADLY_TOKEN]))
        tasks += [asyncio.create_task(tokens_of(engines[seed % 2], seed)) for seed in range(2, 4)]
        with pytest.raises(PoisonRequestError, match="given up"):
            await asyncio.wait_for(deadly, 90)
        assert await asyncio.wait_for(asyncio.gather(*tasks), 90) == undisturbed
        assert codes == [-signal.SIGSEGV] * 2
        for engine in engines:
            assert engine.num_restarts == 2
            await engine.close()


@pytest.mark.slow
async def test_streams_go_on_after_a_step_that_ran_out_of_memory(tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"ipc://{tmp_path}/engine.sock"
    once = tmp_path / "once"
    monkeypatch.setenv("FRAGILE_ONCE", str(once))
    once.touch()
    async with kept_running(address, FRAGILE_PROGRAM) as codes:
        engine = await connected(address)
        hungry = [*PROMPT, HUNGRY_TOKEN]
        undisturbed = [await tokens_of(engine, 0), await tokens_of(engine, 1, prompt=hungry)]
        once.unlink()
        started = asyncio.Event()
        first = asyncio.create_task(tokens_of(engine, 0, started))
        await started.wait()
        second = asyncio.create_task(tokens_of(engine, 1, prompt=hungry))
        assert await asyncio.wait_for(asyncio.gather(first, second), 90) == undisturbed
        assert codes == [70]
        assert engine.num_restarts == 1
        await engine.close()


async def test_leaving_a_stream_frees_its_blocks(tmp_path: Path) -> None:
    async with engine_at(f"ipc://{tmp_path}/engine.sock") as (engine, _):
        stream = await engine.submit(PROMPT, params(1, 400), "left")
        await stream.__anext__()
        await stream.aclose()
        for _ in range(50):
            await asyncio.sleep(0.1)
            status = engine.engines[0].status
            if status is not None and status.num_running == 0 and status.kv_usage == 0:
                return
        pytest.fail(f"still running: {status}")


async def test_sigterm_ends_the_engine_with_zero(tmp_path: Path) -> None:
    process = start_engine(f"ipc://{tmp_path}/engine.sock")
    await asyncio.sleep(1.5)
    os.kill(process.pid, signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 30) == 0


@pytest.mark.parametrize(("arguments", "code"), [('{"dtype": "int4"}', 2), ('{"no_such_flag": 1}', 2),
                                                 ('{"model": "/no/such/model"}', 2)])
def test_refused_configuration_exits_with_its_code(tmp_path: Path, arguments: str, code: int) -> None:
    run = subprocess.run([sys.executable, "-m", "quire.engine", "--address", f"ipc://{tmp_path}/e.sock",
                          "--args", arguments], capture_output=True, text=True, timeout=60)
    assert run.returncode == code, run.stderr
