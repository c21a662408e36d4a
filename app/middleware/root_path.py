"""Serves what a proxy sends on with its path prefix (--root-path) as what another sends without it.

Outermost but for the client's address, so that keys, limits, metrics and log see one path for both. The prefix is taken
off once: what is left is a path like any other, and beginning with the prefix again makes it no other one. Not before
/metrics and /admin: a proxy that strips the prefix, and lets nobody at these, would let /llm/llm/admin through.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from quire.app.middleware.auth import is_operators


class RootPathMiddleware:
    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["path"] + "/").startswith(self._root_path + "/"):
            path = scope["path"].removeprefix(self._root_path) or "/"
            if not is_operators(path):
                scope["path"] = path
        await self._app(scope, receive, send)
