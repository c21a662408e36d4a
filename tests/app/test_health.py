"""What the probes say, from each state that the engine may be in."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from quire.app import gone_file
from quire.app.main import create_app
from quire.app.reload import request_reload
from quire.engine import logs
from quire.engine.config import EngineArgs
from quire.engine.frontend.load_progress import LoadProgress
from quire.engine.heartbeat import OVERDUE_S
from quire.engine.logs import LevelFile
from tests.app.conftest import worker_settings
from tests.app.fake_engine import FakeEngine


async def test_an_engine_that_loads_is_alive_and_not_ready(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.info, fake.state = None, "loading"
    assert (await client.get("/livez")).status_code == (await client.get("/healthz")).status_code == 200
    for path in ("/readyz", "/startupz"):
        reply = await client.get(path)
        assert reply.status_code == 503
        assert reply.json() == {"status": "loading", "phase": "loading weights", "fraction": 0.25, "eta_s": 12.5}
        assert int(reply.headers["retry-after"]) >= 1
    fake.load_eta_s = None
    assert (await client.get("/readyz")).json()["eta_s"] is None


async def test_health_is_200_only_where_requests_are_served_and_asks_nobody_for_a_key(
        guarded: httpx.AsyncClient, fake: FakeEngine) -> None:
    async def statuses() -> set[int]:
        return {(await guarded.request(method, path)).status_code
                for method, path in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping"), ("GET", "/readyz"))}

    assert await statuses() == {200}
    fake.silent_s = 1000
    assert await statuses() == {503}
    fake.silent_s, fake.state = 0.0, "down"
    assert await statuses() == {503}
    fake.info, fake.state = None, "loading"
    assert await statuses() == {503}
    assert (await guarded.get("/livez")).status_code == 200


async def test_an_engine_that_restarts_is_alive_and_started_and_not_ready(client: httpx.AsyncClient,
                                                                          fake: FakeEngine) -> None:
    fake.state = "down"
    assert (await client.get("/livez")).status_code == (await client.get("/startupz")).status_code == 200
    reply = await client.get("/readyz")
    assert (reply.status_code, reply.json()["status"]) == (503, "restarting")
    assert "retry-after" in reply.headers


async def test_with_an_engine_gone_for_good_the_server_is_ready_and_says_that_it_is_degraded(
        client: httpx.AsyncClient, fake: FakeEngine) -> None:
    other = FakeEngine()
    other.state, fake.others = "down", [other]
    assert (await client.get("/readyz")).json() == {"status": "ready"}
    other.state = "gone"
    reply = await client.get("/readyz")
    assert (reply.status_code, reply.json()) == (200, {"status": "degraded", "engines_gone": [1]})
    assert (await client.get("/livez")).status_code == 200
    fake.state = "gone"
    assert (await client.get("/readyz")).status_code == 503


async def test_a_worker_hears_which_engines_are_gone_whenever_it_comes(
        make_app: Callable[..., Starlette], fake: FakeEngine, tmp_path: Path) -> None:
    gone_file.write(str(tmp_path / "gone"), {1: True})
    app = make_app()
    async with app.router.lifespan_context(app):
        while fake.lost != {1: True}:
            await asyncio.sleep(0.01)
        gone_file.write(str(tmp_path / "gone"), {1: True, 0: False})
        while fake.lost != {1: True, 0: False}:
            await asyncio.sleep(0.01)


async def test_an_engine_that_hangs_and_is_not_replaced_is_not_alive(client: httpx.AsyncClient,
                                                                     fake: FakeEngine) -> None:
    fake.silent_s = 60 + OVERDUE_S - 1  # the launcher may be at it
    assert (await client.get("/livez")).status_code == 200
    fake.silent_s = 60 + OVERDUE_S + 1
    reply = await client.get("/livez")
    assert (reply.status_code, reply.json()["status"]) == (503, "hung")


@pytest.mark.parametrize("opened", [False, True])
async def test_a_worker_knows_whether_all_engines_were_ready_before_it(tmp_path: Path, fake: FakeEngine,
                                                                       opened: bool) -> None:
    told: list[Any] = []

    async def connect(addresses: Sequence[str], args: EngineArgs, *, opened: bool) -> Any:
        told.extend([list(addresses), opened])
        return fake

    app = create_app(worker_settings(tmp_path, engine=EngineArgs(model="/models/m", data_parallel_size=2)), connect)
    if opened:
        Path(app.state.service.settings.opened_file).touch()
    async with app.router.lifespan_context(app):
        assert told == [[f"ipc://{tmp_path}/engine-{place}.sock" for place in range(2)], opened]


async def test_probes_say_ready(client: httpx.AsyncClient) -> None:
    assert (await client.get("/readyz")).json() == {"status": "ready"}
    assert (await client.get("/startupz")).json() == {"status": "started"}


def test_the_time_left_is_the_phases_own() -> None:
    progress = LoadProgress()
    assert progress.eta_s(0) is None
    progress.update("loading weights", 0.0, 10)
    assert progress.eta_s(11) is None
    progress.update("loading weights", 0.25, 15)
    assert progress.eta_s(15) == pytest.approx(15)
    assert progress.eta_s(20) == pytest.approx(10)
    assert progress.eta_s(100) == 0
    progress.update("capturing graphs", 0.5, 40)
    assert progress.eta_s(41) is None
    progress.update("loading weights", 0.0, 50)  # another engine begins
    assert progress.eta_s(51) is None


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 1), st.floats(0, 100)), max_size=20), st.floats(0, 1e4))
def test_the_time_left_is_never_nonsense(updates: list[tuple[str, float, float]], after: float) -> None:
    progress, now = LoadProgress(), 0.0
    for phase, fraction, pause in updates:
        now += pause
        progress.update(phase, fraction, now)
    eta_s = progress.eta_s(now + after)
    assert eta_s is None or 0 <= eta_s < 1e6


@pytest.fixture
def log_lines(capfd: pytest.CaptureFixture[str]) -> object:
    yield lambda: [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines()]
    structlog.reset_defaults()
    logs.set_level("info")


def test_the_log_level_of_loggers_in_use_follows_the_file(tmp_path: Path, log_lines) -> None:  # type: ignore[no-untyped-def]
    path = str(tmp_path / "reload")
    logs.configure_logging("info")
    log, levels = structlog.get_logger("test"), LevelFile(path)
    levels.follow()
    log.debug("unheard")
    log.info("heard")
    request_reload(path, "error")
    levels.follow()
    log.warning("unheard")
    log.error("heard too")
    request_reload(path, "debug")
    levels.follow()
    log.debug("and this")
    Path(path).write_text("{")
    os.utime(path, (1, 1))
    levels.follow()
    levels.follow()
    log.debug("still")
    assert log_lines() == ["heard", "heard too", "and this", "log level unchanged", "still"]


@pytest.mark.parametrize("content", ["[]", "1", "null", '"debug"', "{}", '{"log_level": "loud"}', '{"log_level": []}',
                                     "[" * 100_000, b"\xff"])
def test_a_level_file_of_whatever_content_changes_nothing(content: str | bytes, tmp_path: Path, log_lines) -> None:  # type: ignore[no-untyped-def]
    logs.configure_logging("info")
    path = tmp_path / "reload"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    LevelFile(str(path)).follow()
    assert logs.level() == "info"
    assert log_lines() == ["log level unchanged"]
