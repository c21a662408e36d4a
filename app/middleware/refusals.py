"""Turns what nothing further in has answered into a reply: refusals of the middleware within, and failures."""

from __future__ import annotations

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from quire.app.errors import ApiError, as_api_error, error_response
from quire.app.in_flight import CLIENT_GONE
from quire.app.telemetry.record import RequestRecord

log = structlog.get_logger(__name__)


class RefusalsMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record: RequestRecord = scope["state"]["record"]
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            record.status, record.aborted = CLIENT_GONE, "disconnect"
        except Exception as error:
            if not isinstance(error, ApiError):
                log.exception("request failed", request_id=record.request_id)
            if record.status == 0:
                await error_response(as_api_error(error), record)(scope, receive, send)
