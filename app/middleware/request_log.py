"""Gives a request its id and record, and at its end hands the record to log, metrics and trace.

A client's x-request-id is kept where it is harmless, and echoed; otherwise one is drawn. Further in,
`quire.app.middleware.refusals` turns exceptions into replies.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.app.anthropic_errors import PATHS as ANTHROPIC_PATHS
from quire.app.schemas.unknown import warning
from quire.app.telemetry.logging import log_request
from quire.app.telemetry.record import Content, RequestRecord

if TYPE_CHECKING:
    from quire.app.service import Service
    from quire.app.telemetry.tracing import RequestTrace

_GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})


class RequestLogMiddleware:
    """`handler_of` turns a path into the metrics' label; `quiet` paths (probes) get neither log line nor trace."""

    def __init__(self, app: ASGIApp, service: Service, handler_of: Callable[[str], str],
                 quiet: frozenset[str]) -> None:
        self._app = app
        self._metrics = service.metrics
        self._tracing = service.tracing
        self._handler_of = handler_of
        self._quiet = quiet
        serve = service.settings.serve
        self._access_log = not serve.disable_access_log
        self._log_content = serve.log_content and serve.log_content_is_permitted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = self._record(scope, headers)
        scope.setdefault("state", {})["record"] = record
        structlog.contextvars.bind_contextvars(request_id=record.request_id)  # a request has its own context
        handler = self._handler_of(record.path)
        loud = record.path not in self._quiet
        trace: RequestTrace | None = None
        if loud:
            self._metrics.http_in_flight.inc()
            if self._tracing is not None:
                trace = self._tracing.begin(record, handler, headers, scope["scheme"])

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                reply_headers = MutableHeaders(scope=message)
                reply_headers["x-request-id"] = record.request_id
                if record.path in ANTHROPIC_PATHS:
                    reply_headers["request-id"] = record.request_id
                if record.ignored:
                    reply_headers["warning"] = warning(record.ignored)
                if trace is not None:
                    reply_headers["traceparent"] = trace.traceparent
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            record.ended = time.perf_counter()
            self._metrics.request_ended(record, handler)
            if trace is not None:
                trace.end()
            if loud:
                self._metrics.http_in_flight.dec()
                if self._access_log:
                    log_request(record)

    def _record(self, scope: Scope, headers: Headers) -> RequestRecord:
        given = headers.get("x-request-id", "")
        traceparent = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
        return RequestRecord(
            given if _GOOD_ID.fullmatch(given) else uuid.uuid4().hex,
            scope["method"] if scope["method"] in _METHODS else "other",
            scope["path"],
            client=scope["client"][0] if scope.get("client") else "",
            trace_id=traceparent[1] if traceparent else "",
            content=Content() if self._log_content else None)
