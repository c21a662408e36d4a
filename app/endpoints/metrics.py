"""GET /metrics, for Prometheus."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from quire.app.openapi.operation import NAMES_PORT, operation
from quire.app.service import Service, service_of
from quire.app.telemetry.engine_metrics import EngineCollector
from quire.app.telemetry.process_metrics import ProcessCollector
from quire.app.telemetry.service_metrics import ServiceCollector


@operation("Show metrics", "operation", other_media={"text/plain": None}, refuses=NAMES_PORT)
async def metrics(request: Request) -> Response:
    # Reads every worker's file and /proc: not on the event loop.
    text = await run_in_threadpool(_expose, service_of(request))
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})


def _expose(service: Service) -> bytes:
    metrics, engine = service.metrics, service.connected_engine
    engines = [] if engine is None else [EngineCollector(engine, service.settings.serve.engine, metrics.labels[0])]
    return metrics.expose([*engines, ServiceCollector(service), ProcessCollector()])
