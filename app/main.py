"""The application as a value: `create_app(settings)`. gunicorn's workers call `from_run_dir`.

Never imports torch or transformers: a worker is small, and starts while the engine loads.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware

from quire.app import otlp_endpoint
from quire.app.door import Door
from quire.app.errors import HANDLERS
from quire.app.keys.ring import KeyRing
from quire.app.lifespan import Connect, lifespan_of
from quire.app.middleware.auth import AuthMiddleware
from quire.app.middleware.body_limit import BodyLimitMiddleware
from quire.app.middleware.forwarded import ForwardedMiddleware
from quire.app.middleware.host import HostMiddleware
from quire.app.middleware.refusals import RefusalsMiddleware
from quire.app.middleware.request_log import RequestLogMiddleware
from quire.app.middleware.root_path import RootPathMiddleware
from quire.app.routes import CONSOLE_ROUTES, DOCS_ROUTES, PUBLIC, QUIET, ROUTES, handler_of
from quire.app.service import Service
from quire.app.settings import ServeSettings
from quire.app.telemetry import shared_values
from quire.app.telemetry.audit import AuditLog
from quire.app.telemetry.metrics import Metrics
from quire.app.tls import Tls
from quire.app.worker_settings import WorkerSettings
from quire.engine.frontend.async_llm import AsyncLLMEngine

if TYPE_CHECKING:
    from quire.app.telemetry.tracing import Tracing


def create_app(settings: WorkerSettings, connect: Connect = AsyncLLMEngine.connect) -> Starlette:
    keys = KeyRing(settings.key_digests, settings.serve.api_key_file, settings.last_good_key_file)
    audit = AuditLog(settings.serve.audit_log)
    metrics = Metrics(settings.serve.model_names[0])
    metrics.expect_keys(key.name for key in keys.keys)
    service = Service(settings, metrics, keys, audit, _tracing(settings, metrics),
                      Tls.of(settings.serve), door=Door(settings.serve.num_http_workers))
    docs_routes = DOCS_ROUTES if settings.serve.docs else []
    public = PUBLIC | {route.path for route in docs_routes}
    root_path = settings.serve.root_path.rstrip("/")
    console_routes = CONSOLE_ROUTES if settings.serve.console else []
    pages = frozenset(route.path for route in console_routes)
    app = Starlette(
        routes=[*ROUTES, *docs_routes, *console_routes],
        middleware=[  # outermost first
            Middleware(ForwardedMiddleware, proxies=settings.serve.forwarded_allow_ips or []),
            *([Middleware(RootPathMiddleware, root_path=root_path)] if root_path else []),
            Middleware(RequestLogMiddleware, service=service, handler_of=handler_of, quiet=QUIET | pages),
            *_cors(settings.serve),
            Middleware(RefusalsMiddleware),
            Middleware(HostMiddleware, settings=settings, keys=keys, public=QUIET - {"/metrics"}),
            Middleware(AuthMiddleware, keys=keys, audit=audit, public=public | pages, admin_port=settings.admin_port),
            Middleware(service.in_flight.middleware),
            Middleware(BodyLimitMiddleware, max_bytes=settings.serve.max_body_bytes),
        ],
        exception_handlers=HANDLERS,
        lifespan=lifespan_of(service, connect),
    )
    app.router.redirect_slashes = False  # where to would come from the Host that the client sent
    app.state.service = service
    app.state.public_paths = public
    return app


def _cors(settings: ServeSettings) -> list[Middleware]:
    if not settings.allowed_origins:
        return []
    # Late: a worker that lets no pages in does not load it.
    from quire.app.middleware.cors import cors_middleware

    return [cors_middleware(settings)]


def _tracing(settings: WorkerSettings, metrics: Metrics) -> Tracing | None:
    endpoint = settings.serve.otlp_traces_endpoint
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    if off or not (endpoint or any(os.environ.get(name) for name in otlp_endpoint.VARIABLES)):
        return None
    # Late: a worker that does not trace does not load OpenTelemetry.
    from quire.app.telemetry.tracing import Tracing

    return Tracing(endpoint and otlp_endpoint.with_path(endpoint), settings.serve.trace_sample_ratio,
                   metrics.spans_dropped)


def from_run_dir() -> Starlette:
    shared_values.use()
    return create_app(WorkerSettings.from_run_dir(os.environ["QUIRE_RUN_DIR"]))
