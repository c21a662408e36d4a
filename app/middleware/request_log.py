"""The outermost middleware: gives a request its id and record, answers what nothing else did, writes the log line.

A client's x-request-id is kept where it is harmless, and echoed; otherwise one is drawn.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ApiError, as_api_error, error_response
from app.in_flight import CLIENT_GONE
from app.telemetry.logging import log_request
from app.telemetry.metrics import Metrics
from app.telemetry.record import RequestRecord

log = structlog.get_logger(__name__)

_GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})


class RequestLogMiddleware:
    """`handler_of` turns a path into the metrics' label; `quiet` paths (probes) get no log line."""

    def __init__(self, app: ASGIApp, metrics: Metrics, handler_of: Callable[[str], str], quiet: frozenset[str],
                 access_log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._handler_of = handler_of
        self._quiet = quiet
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        record = RequestRecord(
            given if _GOOD_ID.fullmatch(given) else uuid.uuid4().hex,
            scope["method"] if scope["method"] in _METHODS else "other",
            scope["path"].removeprefix(scope.get("root_path", "")))
        scope.setdefault("state", {})["record"] = record

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            record.status = CLIENT_GONE
        except Exception as error:
            if not isinstance(error, ApiError):
                log.exception("request failed", request_id=record.request_id)
            if record.status == 0:
                await error_response(as_api_error(error))(scope, receive, send_with_id)
        finally:
            self._finish(record)

    def _finish(self, record: RequestRecord) -> None:
        self._metrics.http_request(record.method, self._handler_of(record.path), record.status)
        if self._access_log and record.path not in self._quiet:
            log_request(record)
