"""GET /metrics, for Prometheus."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from app.service import service_of


async def metrics(request: Request) -> Response:
    service = service_of(request)
    # Reads every worker's file: not on the event loop.
    text = await run_in_threadpool(service.metrics.expose, service.engine)
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})
