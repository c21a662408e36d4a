"""The key check: every path needs a bearer token, save the few that are named public.

Keys are known only as SHA-256 digests, compared in constant time. A key is named in logs by its digest's first digits.
"""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import ApiError
from engine.messages import KeyLimits


class AuthMiddleware:
    def __init__(self, app: ASGIApp, key_digests: list[str], public: frozenset[str]) -> None:
        self._app = app
        self._digests = [bytes.fromhex(digest) for digest in key_digests]
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests:
            record = scope["state"]["record"]
            if record.path not in self._public:
                record.key = KeyLimits(self._check(Headers(scope=scope).get("authorization", "")))
        await self._app(scope, receive, send)

    def _check(self, header: str) -> str:
        """The presented key's name. Raises ApiError (401)."""
        scheme, _, token = header.partition(" ")
        presented = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        known = False
        for digest in self._digests:  # all of them, whichever fits, so that time tells nothing
            known |= hmac.compare_digest(digest, presented)
        if scheme.lower() != "bearer" or not known:
            raise ApiError(401, "A valid API key is needed, as the header `Authorization: Bearer KEY`.",
                           headers={"www-authenticate": "Bearer"})
        return presented.hex()[:8]
