"""What runs beside a worker's requests does not end unnoticed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from structlog.testing import capture_logs


async def test_a_broken_background_task_is_logged_and_ends_the_worker(
        make_app: Callable[..., Starlette], tmp_path: Path) -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    try:
        app = make_app()
        with capture_logs() as logs:
            async with app.router.lifespan_context(app):
                (tmp_path / "drain").write_text("no number")
                await asyncio.wait_for(told.wait(), 10)
        [entry] = [entry for entry in logs if entry["log_level"] == "error"]
        assert isinstance(entry["exc_info"], ValueError)
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


async def test_leaving_in_order_ends_no_worker(make_app: Callable[..., Starlette]) -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    try:
        app = make_app()
        async with app.router.lifespan_context(app):
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        assert not told.is_set()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
