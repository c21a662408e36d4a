"""Server-sent events: one reply whose frames come from an async generator, and what is sent when that fails midway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import ApiError, as_api_error
from app.in_flight import SHUTTING_DOWN, InFlight
from engine.errors import QuireError

log = structlog.get_logger(__name__)

DONE = b"data: [DONE]\n\n"


def frame(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


class EventStream(Response):
    """Sends `frames` as they come. After the first byte a failure can only be an event: the error, then the end."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes, None], in_flight: InFlight) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._frames = frames
        self._in_flight = in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        last = b""
        async with aclosing(self._frames) as frames:
            try:
                async for data in frames:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except asyncio.CancelledError:
                if not self._in_flight.expired:
                    raise
                last = frame(ApiError(503, SHUTTING_DOWN).body())
            except Exception as error:
                if not isinstance(error, (ApiError, QuireError)):
                    log.exception("stream failed")
                last = frame(as_api_error(error).body()) + DONE
        await send({"type": "http.response.body", "body": last, "more_body": False})
