"""The application as a value: `create_app(settings)`. gunicorn's workers call `from_run_dir`.

Never imports torch or transformers: a worker is small, and starts while the engine loads.
"""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.middleware import Middleware

from app.errors import HANDLERS
from app.lifespan import Connect, lifespan_of
from app.middleware.auth import AuthMiddleware
from app.middleware.body_limit import BodyLimitMiddleware
from app.middleware.request_log import RequestLogMiddleware
from app.routes import PUBLIC, QUIET, ROUTES, handler_of
from app.service import Service
from app.settings import WorkerSettings
from app.telemetry.metrics import Metrics
from engine.frontend.async_llm import AsyncLLMEngine


def create_app(settings: WorkerSettings, connect: Connect = AsyncLLMEngine.connect) -> Starlette:
    service = Service(settings, Metrics(settings.serve.model_names[0]))
    app = Starlette(
        routes=ROUTES,
        middleware=[  # outermost first
            Middleware(RequestLogMiddleware, metrics=service.metrics, handler_of=handler_of, quiet=QUIET,
                       access_log=not settings.serve.disable_access_log),
            Middleware(AuthMiddleware, key_digests=settings.key_digests, public=PUBLIC),
            Middleware(service.in_flight.middleware),
            Middleware(BodyLimitMiddleware, max_bytes=settings.serve.max_body_bytes),
        ],
        exception_handlers=HANDLERS,
        lifespan=lifespan_of(service, connect),
    )
    app.state.service = service
    return app


def from_run_dir() -> Starlette:
    return create_app(WorkerSettings.from_run_dir(os.environ["QUIRE_RUN_DIR"]))
