"""What runs beside a worker's requests does not end unnoticed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from starlette.applications import Starlette
from structlog.testing import capture_logs

from quire.app import lifespan, tls, worker
from quire.app.reload import request_reload
from quire.app.watch import watch
from quire.app.worker import HttpWorker
from quire.engine.errors import EngineDeadError
from tests.app.fake_engine import FakeEngine


@contextlib.contextmanager
def sigterm() -> Iterator[asyncio.Event]:
    """Set when this process is asked to stop."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    try:
        yield told
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


def errors(logs: list[Any]) -> list[Any]:
    return [entry for entry in logs if entry["log_level"] == "error"]


async def test_a_broken_background_task_is_logged_and_ends_the_worker(
        make_app: Callable[..., Starlette], tmp_path: Path) -> None:
    with sigterm() as told, capture_logs() as logs:
        app = make_app()
        async with app.router.lifespan_context(app):
            (tmp_path / "drain").write_text("no number")
            await asyncio.wait_for(told.wait(), 10)
    [entry] = errors(logs)
    assert isinstance(entry["exc_info"], ValueError)


async def test_a_worker_that_follows_its_certificate_no_more_ends(
        make_app: Callable[..., Starlette], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "pair.pem"))
    (tmp_path / "pair.pem").chmod(0o600)

    async def breaks(*_: object) -> None:
        raise RuntimeError("nobody foresaw it")

    monkeypatch.setattr(tls, "watch", breaks)
    with sigterm() as told, capture_logs() as logs:
        app = make_app(ssl_certfile=str(tmp_path / "pair.pem"), ssl_keyfile=str(tmp_path / "pair.pem"))
        async with app.router.lifespan_context(app):
            await asyncio.wait_for(told.wait(), 10)
    assert "nobody foresaw it" in str(errors(logs))


async def test_a_key_file_that_nobody_foresaw_is_logged_and_the_next_one_read(
        make_app: Callable[..., Starlette], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifespan, "watch", partial(watch, poll_s=0.01))
    app = make_app()
    reads: list[Callable[[], object]] = [lambda: 1 / 0, lambda: True]

    def read() -> object:
        return reads.pop(0)()

    app.state.service.keys.reload = read
    with sigterm() as told, capture_logs() as logs:
        async with app.router.lifespan_context(app):
            for left in (1, 0):
                await asyncio.sleep(0.05)
                request_reload(str(tmp_path / "reload"), "info")
                while len(reads) > left:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
    assert not told.is_set()
    [entry] = errors(logs)
    assert isinstance(entry["exc_info"], ZeroDivisionError)


async def test_a_heartbeat_that_fails_is_logged_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "BEAT_S", 0.01)
    beaten = asyncio.Event()
    beats: list[Callable[[], None]] = [lambda: os.utime("/nowhere"), beaten.set]

    def notify() -> None:
        beats.pop(0)()

    one: Any = SimpleNamespace(notify=notify)
    with capture_logs() as logs:
        beating = asyncio.create_task(HttpWorker._beat(one))
        await asyncio.wait_for(beaten.wait(), 10)
        beating.cancel()
    assert [entry["event"] for entry in errors(logs)] == ["heartbeat failed"]


async def test_leaving_in_order_ends_no_worker(make_app: Callable[..., Starlette]) -> None:
    with sigterm() as told:
        app = make_app()
        async with app.router.lifespan_context(app):
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        assert not told.is_set()


async def test_a_worker_that_hears_its_engine_no_more_ends(make_app: Callable[..., Starlette],
                                                           fake: FakeEngine) -> None:
    async def breaks() -> None:
        raise EngineDeadError("nobody foresaw it")

    fake.watch = breaks  # type: ignore[method-assign]
    with sigterm() as told, capture_logs() as logs:
        app = make_app()
        async with app.router.lifespan_context(app):
            await asyncio.wait_for(told.wait(), 10)
    assert "nobody foresaw it" in str(errors(logs))
