"""The requests that this worker is answering: each may end before its time, all do when the drain's time is up.

Ending early is a cancellation of the request's task, so every `finally` on the way out runs and the engine's work is
aborted. What is told to the client, if there still is one, is the error that came with the ending. Used as middleware;
knows nothing of what a request does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.app.errors import ApiError
from quire.app.telemetry.record import RequestRecord

CLIENT_GONE = 499  # nginx's status for it; only logs and metrics ever see it
DRAINING = "draining"
SHUTTING_DOWN = "The server is shutting down, and the time for running requests is over. Please try again."


def shutting_down() -> ApiError:
    return ApiError(503, SHUTTING_DOWN, headers={"retry-after": "5", "connection": "close"}, reason=DRAINING)


class Running:
    """One request's task, and why it was ended early, if it was."""

    def __init__(self, task: asyncio.Task[object], record: RequestRecord) -> None:
        self.error: ApiError | None = None  # why the rest of the reply does not come
        self.ended = False
        self.begun = False  # a part of the reply was sent
        self.complete = False  # all of it was: nothing is left to end
        self._task = task
        self._record = record
        self._timers: list[asyncio.TimerHandle] = []

    def end(self, cause: str, error: ApiError | None) -> None:
        """Cancel the request's task, once. Without an error there is nobody to tell."""
        if self.ended or self.complete:
            return
        self.ended, self.error, self._record.aborted = True, error, cause
        self._task.cancel()

    def call_in(self, delay_s: float, job: Callable[[], None]) -> None:
        """Call `job` after `delay_s`, unless the request is over by then."""
        self._timers.append(asyncio.get_running_loop().call_later(delay_s, job))

    def forget_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()


class InFlight:
    def __init__(self) -> None:
        self.draining = False  # not ready any more, but still answering
        self.expired = False  # nothing is answered any more
        self._running: set[Running] = set()

    def __len__(self) -> int:
        return len(self._running)

    def expire(self) -> None:
        self.expired = True
        for request in self._running:
            request.end("shutdown", shutting_down())

    def middleware(self, app: ASGIApp) -> ASGIApp:
        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await self._serve(app, scope, receive, send)
            else:
                await app(scope, receive, send)

        return serve

    async def _serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        if self.expired:
            raise shutting_down()
        task, record = asyncio.current_task(), scope["state"]["record"]
        assert task is not None
        request = scope["state"]["running"] = Running(task, record)
        watcher: asyncio.Task[None] | None = None

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            request.end("disconnect", None)

        async def receive_body() -> Message:
            nonlocal watcher
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body") and watcher is None:
                # The server reports that a client went only to someone who waits for its next message.
                watcher = asyncio.create_task(watch())
            return message

        async def send_noting(message: Message) -> None:
            if self.draining and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"  # the client's next request goes elsewhere
            request.complete = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)
            request.begun = True

        self._running.add(request)
        try:
            await app(scope, receive_body, send_noting)
        except asyncio.CancelledError:
            if not request.ended:
                raise
            if request.error is None:
                record.status = CLIENT_GONE
            elif not request.begun:
                raise request.error from None
        finally:
            self._running.discard(request)
            request.forget_timers()
            if watcher is not None:
                watcher.cancel()


def running_of(request: Request) -> Running:
    running = request.scope["state"]["running"]
    assert isinstance(running, Running)
    return running
