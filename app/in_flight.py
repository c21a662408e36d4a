"""The requests that this worker is answering: each ends early when its client goes, all when the drain's time is up.

Ending early is a cancellation of the request's task, so every `finally` on the way out runs and the engine's work is
aborted. Used as middleware; knows nothing of what a request does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ApiError

CLIENT_GONE = 499  # nginx's status for it; only logs and metrics ever see it
SHUTTING_DOWN = "The server is shutting down, and the time for running requests is over. Please try again."


@dataclass(eq=False)
class _Running:
    task: asyncio.Task[object]
    answered: bool = False  # the reply is complete: nothing is left to end
    started: bool = False
    client_gone: bool = False
    expired: bool = False

    def cancel(self) -> None:
        if not self.answered:
            self.task.cancel()


class InFlight:
    def __init__(self) -> None:
        self.draining = False  # not ready any more, but still answering
        self.expired = False  # nothing is answered any more
        self._running: set[_Running] = set()

    def __len__(self) -> int:
        return len(self._running)

    def expire(self) -> None:
        self.expired = True
        for request in self._running:
            request.expired = True
            request.cancel()

    def middleware(self, app: ASGIApp) -> ASGIApp:
        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await self._serve(app, scope, receive, send)
            else:
                await app(scope, receive, send)

        return serve

    async def _serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        if self.expired:
            raise ApiError(503, SHUTTING_DOWN, headers={"retry-after": "5", "connection": "close"})
        task = asyncio.current_task()
        assert task is not None
        request = _Running(task)
        watcher: asyncio.Task[None] | None = None

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            request.client_gone = True
            request.cancel()

        async def receive_body() -> Message:
            nonlocal watcher
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body") and watcher is None:
                # The server reports that a client went only to someone who waits for its next message.
                watcher = asyncio.create_task(watch())
            return message

        async def send_noting(message: Message) -> None:
            request.started = True
            request.answered = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        self._running.add(request)
        try:
            await app(scope, receive_body, send_noting)
        except asyncio.CancelledError:
            if request.client_gone:
                scope["state"]["record"].status = CLIENT_GONE
            elif not request.expired:
                raise
            elif not request.started:
                raise ApiError(503, SHUTTING_DOWN, headers={"retry-after": "5"}) from None
        finally:
            self._running.discard(request)
            if watcher is not None:
                watcher.cancel()
