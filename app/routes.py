"""THE list of endpoints. A new one is a module in endpoints/, whose function says by `@operation` what it takes and
gives, and a line here.

Every path needs an API key, where the server has any, unless it is named public; /metrics and /admin have a switch of
their own (`app/middleware/auth.py`).
"""

from __future__ import annotations

from starlette.routing import Route

from quire.app.endpoints import (
    admin,
    chat,
    completions,
    console,
    docs,
    embeddings,
    generate,
    health,
    load,
    messages,
    metrics,
    models,
    responses,
    tokenize,
)

ROUTES = [
    Route("/v1/chat/completions", chat.chat_completions, methods=["POST"]),
    Route("/v1/completions", completions.completions, methods=["POST"]),
    Route("/v1/responses", responses.responses, methods=["POST"]),
    Route("/generate", generate.generate, methods=["POST"]),
    Route("/v1/embeddings", embeddings.embeddings, methods=["POST"]),
    Route("/v1/messages", messages.create_message, methods=["POST"]),
    Route("/v1/messages/count_tokens", messages.count_tokens, methods=["POST"]),
    Route("/v1/models", models.list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", models.show_model, methods=["GET"]),
    Route("/tokenize", tokenize.tokenize, methods=["POST"]),
    Route("/detokenize", tokenize.detokenize, methods=["POST"]),
    Route("/load", load.load, methods=["GET"]),
    Route("/metrics", metrics.metrics, methods=["GET"]),
    Route("/admin/status", admin.status, methods=["GET"]),
    Route("/admin/keys", admin.keys, methods=["GET"]),
    Route("/admin/reload", admin.reload, methods=["POST"]),
    Route("/admin/log-level", admin.log_level, methods=["POST"]),
    Route("/version", health.version, methods=["GET"]),
    Route("/healthz", health.livez, methods=["GET"]),
    Route("/livez", health.livez, methods=["GET"]),
    Route("/health", health.readyz, methods=["GET"]),
    Route("/ping", health.readyz, methods=["GET", "POST"]),
    Route("/startupz", health.startupz, methods=["GET"]),
    Route("/readyz", health.readyz, methods=["GET"]),
]

# Left out by --no-console. Public, since a browser sends no key with the address of a page, and quiet as probes are.
CONSOLE_ROUTES = [Route(path, console.file, methods=["GET"]) for path in console.FILES]
# Left out by --no-docs. Public: a browser sends no key with the address of a page.
DOCS_ROUTES = [
    Route("/openapi.json", docs.openapi, methods=["GET"]),
    Route("/docs", docs.page, methods=["GET"]),
    *(Route(f"/docs/{name}", docs.part, methods=["GET"]) for name in docs.PARTS),
]

PUBLIC = frozenset({"/healthz", "/livez", "/readyz", "/health", "/ping"})
QUIET = PUBLIC | {"/startupz", "/metrics", "/load"}  # probes and scrapes: not in the log, and no load

_PATHS = frozenset(route.path for route in (*ROUTES, *DOCS_ROUTES))


def handler_of(path: str) -> str:
    """A path's label in metrics: one of ours, so that clients cannot invent labels."""
    if path.startswith("/v1/models/"):
        return "/v1/models/{model}"
    if path in console.FILES:
        return "/"
    return path if path in _PATHS else "other"
