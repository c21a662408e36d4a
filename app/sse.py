"""Server-sent events: one reply whose frames come from an async generator, comments while none come, and what is sent
when it fails midway.

The head goes out with the first frame, or with the first comment where that comes sooner. So what fails before its
first token fails with a status, which clients understand and retry.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quire.app.errors import ApiError, as_api_error
from quire.app.in_flight import DRAINING, Running
from quire.engine.errors import QuireError

log = structlog.get_logger(__name__)

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
FAREWELL_S = 5.0  # a client that reads nothing does not get its error either


class EventStream(Response):
    """Sends `frames` as they come. After the first byte a failure can only be an event: the error, then the end."""

    media_type = "text/event-stream"
    ping = PING
    done = DONE

    def __init__(self, frames: AsyncGenerator[bytes, None], running: Running, *, ping_interval_s: float,
                 headers: dict[str, str]) -> None:
        """`ping_interval_s` 0: no comments."""
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"} | headers)
        self._frames = frames
        self._running = running
        self._interval_s = ping_interval_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wire = _Wire(send, self.raw_headers, self._interval_s, self.ping)
        last = b""
        async with aclosing(self._frames) as frames:
            try:
                async for data in frames:
                    await wire.write(data)
            except asyncio.CancelledError:
                error = self._running.error
                if error is None or not wire.begun:
                    raise
                # What a stopping server cuts has no end, so that nobody takes it for whole.
                last = self.failure(error) + (b"" if error.reason == DRAINING else self.done)
            except Exception as failure:
                if not wire.begun:
                    raise
                if not isinstance(failure, (ApiError, QuireError)):
                    log.exception("stream failed")
                last = self.failure(as_api_error(failure)) + self.done
            finally:
                wire.stop_pings()
        if not last:
            await wire.write(last, more=False)
            return
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(wire.write(last, more=False), FAREWELL_S)

    def failure(self, error: ApiError) -> bytes:
        """What tells the client of it, before `done`."""
        return self.frame(error.body())

    @staticmethod
    def frame(data: bytes) -> bytes:
        return b"data: " + data + b"\n\n"


class LineStream(EventStream):
    """The same as lines of JSON: an error is the last line, and an empty line says that more will come."""

    media_type = "application/x-ndjson"
    ping = b"\n"
    done = b""

    @staticmethod
    def frame(data: bytes) -> bytes:
        return data + b"\n"


class _Wire:
    """Writes of the stream and of its comments, one at a time, the head before the first of them."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]], interval_s: float, ping: bytes) -> None:
        self._send = send
        self._ping = ping
        self._headers = headers
        self._head_sent = False
        self._one_at_a_time = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._interval_s = interval_s
        self._last_write = self._loop.time()
        self._pings: set[asyncio.Task[None]] = set()  # at most one; held so that it lives
        self._timer = self._loop.call_later(interval_s, self._tick) if interval_s else None

    @property
    def begun(self) -> bool:
        """Whether the head was sent, or a comment is about to send it."""
        return self._head_sent or self._one_at_a_time.locked()

    async def write(self, data: bytes, more: bool = True) -> None:
        async with self._one_at_a_time:
            self._last_write = self._loop.time()
            if not self._head_sent:
                await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
                self._head_sent = True
            await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def stop_pings(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        # One timer a stream, which looks when the last write was: frames cost it nothing.
        rest_s = self._last_write + self._interval_s - self._loop.time()
        if rest_s <= 0:
            rest_s = self._interval_s
            if not self._one_at_a_time.locked():  # else the client is not reading what it has got already
                ping = self._loop.create_task(self.write(self._ping))
                self._pings.add(ping)
                ping.add_done_callback(self._pings.discard)
        self._timer = self._loop.call_later(rest_s, self._tick)
