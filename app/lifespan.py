"""The life of one HTTP worker: connects to the engines, watches the files that may change under it, leaves when its
requests are done. Owns what runs beside the requests, and ends the worker when a part of that breaks.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import structlog
from starlette.applications import Starlette

from quire.app import gone_file
from quire.app.service import Service
from quire.app.watch import stamp, watch
from quire.engine.config import EngineArgs
from quire.engine.errors import EngineDeadError
from quire.engine.frontend.async_llm import AsyncLLMEngine
from quire.engine.logs import LevelFile

log = structlog.get_logger(__name__)

DRAIN_POLL_S = GONE_POLL_S = 0.2
LEAVE_S = 2.0
_GONE = "The engine ended too often and is not started again; the server's log says why."
FETCH_POLL_S = 0.05


class Connect(Protocol):
    def __call__(self, addresses: Sequence[str], args: EngineArgs, *, opened: bool) -> Awaitable[AsyncLLMEngine]: ...


def lifespan_of(service: Service, connect: Connect) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        settings = service.settings
        if not Path(settings.fetch_file).exists():
            await _connect(service, connect)
        levels = LevelFile(settings.reload_file)
        levels.follow()  # a worker that takes a dead one's place begins where the others are

        def reload() -> None:
            levels.follow()
            # In a thread: parsing a long file takes a while.
            loop.run_in_executor(None, read_keys).add_done_callback(_keys_read)

        def read_keys() -> bool:
            read = service.keys.reload()
            service.metrics.expect_keys(key.name for key in service.keys.keys)
            return read

        loop = asyncio.get_running_loop()
        jobs = [_watch_drain(service, Path(settings.drain_file)), _watch_files(service, reload), service.metrics.tick(),
                _follow_engines(service, connect), _watch_gone(service)]
        if service.tls is not None:
            jobs.append(service.tls.follow(settings.reload_file))
        tasks = [asyncio.create_task(job) for job in jobs]
        for task in tasks:
            task.add_done_callback(_task_ended)
        yield
        for task in tasks:
            task.cancel()
        # uvicorn comes here while requests that it cancelled still unwind: they need the connection for their aborts.
        deadline = time.monotonic() + LEAVE_S
        while len(service.in_flight) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        if service.connected_engine is not None:
            await service.connected_engine.close()
        if service.tracing is not None:
            await service.tracing.close()

    return lifespan


async def _connect(service: Service, connect: Connect) -> None:
    settings = service.settings
    service.connected_engine = await connect(settings.engine_addresses, settings.serve.engine,
                                             opened=Path(settings.opened_file).exists())
    if service.connected_engine.takes_images:
        try:
            service.connected_engine.image_loader(shared_by=settings.serve.num_http_workers).warm_up()
        except OSError as error:  # there is no room for a directory; the first image tries again
            log.error("images cannot be processed yet", reason=str(error))


async def _follow_engines(service: Service, connect: Connect) -> None:
    """From when the model's files are here; until then the service answers without them."""
    while service.connected_engine is None:
        if Path(service.settings.fetch_file).exists():
            await asyncio.sleep(FETCH_POLL_S)
        else:
            await _connect(service, connect)
    await service.engine.watch()


def _task_ended(task: asyncio.Task[None]) -> None:
    """One that broke ends the worker, which lets its requests finish, and gunicorn starts another: nobody would drain
    this one, tell it of new keys and certificates, or hear what an engine says."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("worker's background task broke; the worker ends", exc_info=error)
        os.kill(os.getpid(), signal.SIGTERM)


def _keys_read(future: asyncio.Future[bool]) -> None:
    """A worker that takes this one's place would fail over the same file, so this one goes on with the keys it has."""
    if not future.cancelled() and (error := future.exception()) is not None:
        log.error("keys not read, those before stay", exc_info=error)


async def _watch_files(service: Service, reload: Callable[[], None]) -> None:
    reload_file, key_file = service.settings.reload_file, service.settings.serve.api_key_file
    if key_file is None:
        await watch([reload_file], reload)
    else:
        await watch([reload_file, key_file], reload, [stamp(reload_file), service.keys.stamp])


async def _watch_gone(service: Service) -> None:
    while True:
        for place, killed in gone_file.read(service.settings.gone_file).items():
            # Of those that are gone already it is nothing new.
            await service.engine.lose(place, EngineDeadError(_GONE), after_kill=killed)
        await asyncio.sleep(GONE_POLL_S)


async def _watch_drain(service: Service, drain_file: Path) -> None:
    while not drain_file.exists():
        await asyncio.sleep(DRAIN_POLL_S)
    service.in_flight.draining = True
    deadline = float(drain_file.read_text())
    await asyncio.sleep(max(0.0, deadline - time.monotonic()))
    service.in_flight.expire()
