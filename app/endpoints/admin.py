"""/admin: what the server is doing, who may use it, and the two things that can be changed while it runs.

Who may come here is the middleware's matter. Changes are requests to all workers, through the reload file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from quire import __version__
from quire.app.errors import ApiError
from quire.app.keys.key import NEVER, Key
from quire.app.middleware.auth import no_audit
from quire.app.openapi.operation import NAMES_PORT, READS_BODY, operation
from quire.app.options import shown
from quire.app.reload import request_reload, requested
from quire.app.schemas.body import read_body
from quire.app.schemas.described import one_of
from quire.app.schemas.states import Keys, Requested, Status
from quire.app.service import Service, key_of, record_of, service_of
from quire.app.telemetry.audit import AuditError
from quire.engine.logs import LEVELS

if TYPE_CHECKING:
    from quire.engine.frontend.async_llm import AsyncLLMEngine
    from quire.engine.frontend.client import EngineClient

log = structlog.get_logger(__name__)


class LogLevel(msgspec.Struct, frozen=True):
    level: Annotated[str, one_of(*LEVELS)]


@operation("Show what the server is doing", "operation", gives=Status, refuses=NAMES_PORT)
async def status(request: Request) -> Response:
    service = service_of(request)
    engine, settings = service.engine, service.settings
    return _json(200, {
        "version": __version__,
        "started_at": settings.started_at,
        "uptime_s": service.now() - settings.started_at,
        "draining": service.in_flight.draining,
        "engine": _described_engine(engine),
        "engines": [_described_engine(one) for one in engine.engines],
        "keys": {"file": settings.serve.api_key_file, "healthy": service.keys.healthy,
                 "loaded_at": int(service.keys.loaded_at), "number": len(service.keys.keys)},
        "log_level": _log_level(service),
        "settings": shown(settings.serve),
    })


@operation("List the keys, without their secrets", "operation", gives=Keys, refuses=NAMES_PORT)
async def keys(request: Request) -> Response:
    """Names, limits and times; what would help to guess or check a secret is not among it."""
    return _json(200, {"keys": [_described(key) for key in service_of(request).keys.keys]})


@operation("Read keys and certificates again", "operation", gives=Requested, status=202, refuses=NAMES_PORT)
async def reload(request: Request) -> Response:
    service = service_of(request)
    _audited(request, "reload")
    _request(service, _log_level(service))
    return _json(202, {"status": "requested"})


@operation("Change the log level", "operation", takes=LogLevel, gives=Requested, status=202,
           refuses=READS_BODY | NAMES_PORT, example={"level": "debug"})
async def log_level(request: Request) -> Response:
    service = service_of(request)
    body = await read_body(request, LogLevel)
    if body.level not in LEVELS:
        raise ApiError(400, f"level must be one of {', '.join(LEVELS)}; got {body.level[:50]!r}.", "level")
    _audited(request, "log-level", level=body.level)
    _request(service, body.level)
    return _json(202, {"status": "requested", "log_level": body.level})


def _request(service: Service, level: str) -> None:
    """Of all workers and the engine. Raises ApiError (503) where the run directory has no room for it."""
    try:
        request_reload(service.settings.reload_file, level)
    except OSError as error:
        log.error("reload refused, everything stays", problems=[f"--run-dir: {error.strerror}"])
        raise ApiError(503, f"The run directory cannot be written to: {error.strerror}. Nothing was changed.") from None


def _audited(request: Request, action: str, **details: Any) -> None:
    """Called before the change. Raises ApiError (503) where it cannot be written down."""
    record = record_of(request)
    try:
        service_of(request).audit.write(action, "begun", key=key_of(request).name, client=record.client,
                                        request_id=record.request_id, **details)
    except AuditError as error:
        raise no_audit(error) from None


def _log_level(service: Service) -> str:
    last = requested(service.settings.reload_file)
    return service.settings.serve.log_level if last is None else last.log_level


def _described(key: Key) -> dict[str, Any]:
    fields = {name: getattr(key, name) for name in key.__struct_fields__ if name != "sha256"}
    return fields | {"created": None if key.created == NEVER else key.created, "expired": key.expired}


def _described_engine(engine: AsyncLLMEngine | EngineClient) -> dict[str, Any]:
    phase, fraction = engine.loading
    return {"state": engine.state, "phase": phase, "fraction": fraction,
            "info": engine.info and msgspec.structs.asdict(engine.info)}


def _json(status: int, body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
