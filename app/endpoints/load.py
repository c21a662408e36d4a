"""GET /load: how many requests the service is answering, for whoever spreads requests over several servers."""

from __future__ import annotations

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from quire.app.service import service_of


async def load(request: Request) -> Response:
    """`server_load`, as vLLM calls it: all workers' requests, without probes, scrapes and this path's own."""
    # Reads a file of every worker: not on the event loop.
    num_requests = await run_in_threadpool(service_of(request).metrics.num_in_flight)
    return Response(msgspec.json.encode({"server_load": num_requests}), media_type="application/json")
