"""Probes. /healthz (also /livez, /health, /ping): this process answers. /readyz: the model does.

Liveness does not look at the engine on purpose: the launcher restarts it, and killing the service would not help.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.service import service_of
from engine import __version__


def _json(status: int, body: dict[str, object], headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, "application/json")


async def healthz(request: Request) -> Response:
    return _json(200, {"status": "ok"})


async def readyz(request: Request) -> Response:
    service = service_of(request)
    if service.in_flight.draining:
        return _json(503, {"status": "draining"}, {"retry-after": "5"})
    engine = service.engine
    if engine.state == "ready":
        return _json(200, {"status": "ready"})
    phase, fraction = engine.loading
    status = "loading" if engine.info is None else "restarting"
    return _json(503, {"status": status, "phase": phase, "fraction": fraction}, {"retry-after": "2"})


async def version(request: Request) -> Response:
    return _json(200, {"version": __version__})
