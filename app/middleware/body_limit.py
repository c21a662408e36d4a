"""Refuses request bodies beyond a size, announced or not, before they are held in memory, and those that all requests
of this worker together hold too much of.

A body counts from its first byte until it was decoded (`body_was_read`), or its request ends.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.app.errors import ApiError

MOST_BODIES = 16  # of the longest, that a worker holds at once


class BodyLimitMiddleware:
    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise self._too_large()
        received = 0

        async def receive_counting() -> Message:
            nonlocal received
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            self._held_bytes += size
            if received > self._max_bytes:
                raise self._too_large()
            if self._held_bytes > MOST_BODIES * self._max_bytes:
                raise self._too_many()
            return message

        def was_read() -> None:
            nonlocal received
            self._held_bytes -= received
            received = 0

        scope["state"]["body_was_read"] = was_read
        try:
            await self._app(scope, receive_counting, send)
        finally:
            was_read()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The request body is larger than {self._max_bytes} bytes (--max-body-bytes).",
                        headers={"connection": "close"})

    def _too_many(self) -> ApiError:
        return ApiError(503, f"This worker holds {MOST_BODIES * self._max_bytes} bytes of requests not read "
                        f"yet, {MOST_BODIES} times --max-body-bytes. Please try again.",
                        headers={"retry-after": "1", "connection": "close"}, reason="bodies")


def body_was_read(request: Request) -> None:
    """Nothing holds the body any more. Called once the request was decoded."""
    request.scope["state"]["body_was_read"]()
