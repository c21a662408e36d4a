"""Lets pages of the origins that the operator named read replies in a browser (CORS).

Around everything that may refuse: so a page can read refusals too, and preflights, which browsers send without a key,
need none. Within the request's log, which has both. What the connection refuses before it is a request
(`quire.app.protocol`) has no such headers.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from quire.app.cors import ANY
from quire.app.openapi.replies import EXPOSED
from quire.app.settings import ServeSettings


def cors_middleware(settings: ServeSettings) -> Middleware:
    return Middleware(
        CORSMiddleware, allow_origins=settings.allowed_origins or [], allow_methods=settings.allowed_methods or [ANY],
        allow_headers=settings.allowed_headers or [ANY], allow_credentials=settings.allow_credentials,
        expose_headers=EXPOSED)
