"""Probes: is the server alive (/livez, /healthz), was the model ever loaded (/startupz), does it answer (/readyz, and
/health and /ping, which are 200 elsewhere only where requests are served).

An engine that restarts or loads is no reason to kill the server, since the launcher sees to it: /livez fails only when
an engine hangs and was not replaced in time. None of them waits for the engine.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire import __version__
from quire.app.openapi.operation import operation
from quire.app.schemas.states import Alive, Hung, NotReady, Ready, Started, Version
from quire.app.service import Service, service_of
from quire.engine.heartbeat import OVERDUE_S


def _json(status: int, body: dict[str, object], headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, "application/json")


@operation("Is the server alive?", "health", gives=Alive, other_replies={503: Hung})
async def livez(request: Request) -> Response:
    return _hung(service_of(request)) or _json(200, {"status": "ok"})


@operation("Was the model ever loaded?", "health", gives=Started, other_replies={503: NotReady})
async def startupz(request: Request) -> Response:
    service = service_of(request)
    engine = service.connected_engine
    return _json(200, {"status": "started"}) if engine and engine.info is not None else _not_ready(service)


@operation("Are requests served?", "health", gives=Ready, other_replies={503: NotReady})
async def readyz(request: Request) -> Response:
    service = service_of(request)
    if service.in_flight.draining:
        return _json(503, {"status": "draining"}, {"retry-after": "5"})
    engine = service.connected_engine
    if engine is None:
        return _not_ready(service)
    if engine.state == "ready":
        gone = [place for place, one in enumerate(engine.engines) if one.state == "gone"]
        status: dict[str, object] = {"status": "degraded", "engines_gone": gone} if gone else {"status": "ready"}
        return _hung(service) or _json(200, status)
    if engine.state == "gone":  # the server is about to end
        return _json(503, {"status": "gone"})
    return _not_ready(service)


def _hung(service: Service) -> Response | None:
    silent_s = 0.0 if service.connected_engine is None else service.connected_engine.silent_s
    if silent_s > service.settings.serve.engine_stall_timeout + OVERDUE_S:
        return _json(503, {"status": "hung", "silent_s": round(silent_s, 1)})
    return None


def _not_ready(service: Service) -> Response:
    engine = service.connected_engine
    if engine is None:
        state = service.fetch_state()
        return _loading("loading", state.phase, state.fraction, state.eta_s,
                        {"bytes": state.bytes, "total_bytes": state.total_bytes or None})
    return _loading("loading" if engine.info is None else "restarting", *engine.loading, engine.load_eta_s, {})


def _loading(status: str, phase: str, fraction: float, eta_s: float | None, more: dict[str, object]) -> Response:
    return _json(503, {"status": status, "phase": phase, "fraction": round(fraction, 4),
                       "eta_s": None if eta_s is None else round(eta_s, 1)} | more, {"retry-after": "2"})


@operation("Show the version", "health", gives=Version)
async def version(request: Request) -> Response:
    return _json(200, {"version": __version__})
