"""gunicorn's worker class: uvicorn's, with what it lacks for long streams and for dying in time.

It tells gunicorn that it lives also while it drains, ends its drain before gunicorn would kill it, and does not outlive
its master or the launcher.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from uvicorn_worker import UvicornWorker

from engine.lifeline import die_with_parent

BEAT_S = 1.0
# gunicorn kills GRACE_S after the last stream's time is up; uvicorn cancels what is left half way there.
GRACE_S = 6


class HttpWorker(UvicornWorker):  # type: ignore[misc]
    CONFIG_KWARGS = {"loop": "uvloop", "http": "httptools", "ws": "none", "lifespan": "on", "interface": "asgi3",  # noqa: RUF012
                     "server_header": False, "access_log": False}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config.timeout_graceful_shutdown = self.cfg.graceful_timeout - GRACE_S // 2
        self.config.callback_notify = None  # uvicorn's beat stops in a drain; ours does not
        self.config.root_path = os.environ.get("QUIRE_ROOT_PATH", "")

    def init_process(self) -> None:
        lifeline = os.environ.get("QUIRE_LIFELINE")
        die_with_parent(int(lifeline) if lifeline else None)
        super().init_process()

    async def _serve(self) -> None:
        beat = asyncio.create_task(self._beat())
        try:
            await super()._serve()
        finally:
            beat.cancel()

    async def _beat(self) -> None:
        while True:
            self.notify()
            await asyncio.sleep(BEAT_S)
