"""THE list of endpoints. A new one is a module in endpoints/ and a line here.

Every path needs the API key, where one is set, unless it is named public.
"""

from __future__ import annotations

from starlette.routing import Route

from app.endpoints import chat, completions, health, metrics, models, tokenize

ROUTES = [
    Route("/v1/chat/completions", chat.chat_completions, methods=["POST"]),
    Route("/v1/completions", completions.completions, methods=["POST"]),
    Route("/v1/models", models.list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", models.show_model, methods=["GET"]),
    Route("/tokenize", tokenize.tokenize, methods=["POST"]),
    Route("/detokenize", tokenize.detokenize, methods=["POST"]),
    Route("/metrics", metrics.metrics, methods=["GET"]),
    Route("/version", health.version, methods=["GET"]),
    Route("/healthz", health.healthz, methods=["GET"]),
    Route("/livez", health.healthz, methods=["GET"]),
    Route("/health", health.healthz, methods=["GET"]),
    Route("/ping", health.healthz, methods=["GET", "POST"]),
    Route("/readyz", health.readyz, methods=["GET"]),
]

PUBLIC = frozenset({"/healthz", "/livez", "/health", "/ping", "/readyz"})
QUIET = PUBLIC | {"/metrics"}

_PATHS = frozenset(route.path for route in ROUTES)


def handler_of(path: str) -> str:
    """A path's label in metrics: one of ours, so that clients cannot invent labels."""
    if path.startswith("/v1/models/"):
        return "/v1/models/{model}"
    return path if path in _PATHS else "other"
