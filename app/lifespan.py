"""The life of one HTTP worker: connects to the engine, watches for the drain, leaves when its requests are done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette

from app.service import Service
from engine.config import EngineArgs
from engine.frontend.async_llm import AsyncLLMEngine

DRAIN_POLL_S = 0.2
LEAVE_S = 2.0

Connect = Callable[[str, EngineArgs], Awaitable[AsyncLLMEngine]]


def lifespan_of(service: Service, connect: Connect) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        settings = service.settings
        service.connected_engine = await connect(settings.engine_address, settings.serve.engine)
        watcher = asyncio.create_task(_watch_drain(service, Path(settings.drain_file)))
        yield
        watcher.cancel()
        # uvicorn comes here while requests that it cancelled still unwind: they need the connection for their aborts.
        deadline = time.monotonic() + LEAVE_S
        while len(service.in_flight) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await service.engine.close()

    return lifespan


async def _watch_drain(service: Service, drain_file: Path) -> None:
    while not drain_file.exists():
        await asyncio.sleep(DRAIN_POLL_S)
    service.in_flight.draining = True
    deadline = float(drain_file.read_text())
    await asyncio.sleep(max(0.0, deadline - time.monotonic()))
    service.in_flight.expire()
