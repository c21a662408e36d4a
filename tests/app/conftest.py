"""The application in this process, on a fake engine, spoken to through httpx's ASGI transport."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from quire.app.main import create_app
from quire.app.settings import ServeSettings
from quire.app.worker_settings import WorkerSettings
from quire.engine.config import EngineArgs
from tests.app.fake_engine import FakeEngine

KEY = "a-key-that-is-long-enough"


def worker_settings(run_dir: Path, key_digests: list[str] | None = None, admin_port: int | None = None,
                    **changes: Any) -> WorkerSettings:
    """`changes` are settings of ServeSettings."""
    values: dict[str, Any] = {
        "engine": EngineArgs(model="/models/m"), "served_model_name": ["m", "alias"], "api_server_count": 1,
        "shutdown_timeout": 5.0, "max_body_bytes": 4096}
    return WorkerSettings(serve=ServeSettings(**(values | changes)), key_digests=key_digests or [],
                          run_dir=str(run_dir), started_at=1700000000, admin_port=admin_port)


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def make_app(tmp_path: Path, fake: FakeEngine) -> Callable[..., Starlette]:
    async def connect(addresses: Sequence[str], args: EngineArgs, *, opened: bool) -> Any:
        return fake

    def make(**changes: Any) -> Starlette:
        return create_app(worker_settings(tmp_path, **changes), connect)

    return make


@pytest.fixture
async def client(make_app: Callable[..., Starlette]) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app()
    async with app.router.lifespan_context(app), _client(app) as client:
        yield client


@pytest.fixture
async def guarded(make_app: Callable[..., Starlette]) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(key_digests=[hashlib.sha256(k.encode()).hexdigest() for k in ("other", KEY)])
    async with app.router.lifespan_context(app), _client(app) as client:
        yield client


def _client(app: Starlette) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
