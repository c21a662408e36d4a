"""The replies that are not an endpoint's own: each status of a refusal, and the headers that come and go.

The shape of a refusal is `quire.app.errors`' matter; here it has its type.
"""

from __future__ import annotations

from typing import Any

import msgspec


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None  # the field at fault, where one is
    code: int | str


class ErrorReply(msgspec.Struct):
    """Every refusal and failure, also as the last event of a stream that has begun."""

    error: ErrorDetail


OF_CONNECTION = frozenset({400, 408, 414, 431, 500, 503})  # of any request
OF_KEYS = frozenset({401, 403})  # of any that is not public

STATUSES = {
    400: "The request says what cannot be meant or answered; `param` names the field or header at fault.",
    401: "No key, or one that is not valid (any more).",
    403: "The key may not do this or use this model; without keys, a header `Host` that is not this server's.",
    404: "There is no such model or path here.",
    408: "The request did not arrive in time.",
    413: "The body is too long.",
    414: "Path and query are too long.",
    415: "The body is in a content encoding that is not read.",
    429: "A limit of the key is reached. `Retry-After` says when to come again.",
    431: "The request's head is too long, or has too many headers.",
    500: "A failure of the server's own. Its log holds the cause under this request's id.",
    503: "Not ready, full, or shutting down. `Retry-After`, where it is there, says when to come again.",
    504: "A deadline passed, the server's or one that the request set.",
}

RETRY = ("retry-after", "retry-after-ms")
RATES = tuple(f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset"))
HEADERS_OF = {401: ("www-authenticate",), 429: RETRY + RATES, 500: ("x-should-retry",), 503: RETRY,
              504: ("x-should-retry",)}

_SECONDS: dict[str, Any] = {"type": "number", "exclusiveMinimum": 0}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_TEXT: dict[str, Any] = {"type": "string"}

# Of replies: name -> what it says, and its schema.
REPLY_HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "x-request-id": ("The request's id, in logs and traces too: the client's own where it sent one.", _TEXT),
    "warning": ("Names the fields of the request that were passed over.", _TEXT),
    "www-authenticate": ("Which kind of key is wanted.", {"const": "Bearer"}),
    "retry-after": ("Seconds until it is worth coming again.", _COUNT),
    "retry-after-ms": ("The same in milliseconds.", _COUNT),
    "x-should-retry": ("`false` where the same request would fail again.", {"const": "false"}),
    "etag": ("Of this content; a request with it as If-None-Match gets 304 while it is the same.", _TEXT),
    **{name: ("Of the key's limits a minute, where it has any.", _TEXT if "reset" in name else _COUNT)
       for name in RATES},
}

# Of requests.
ANY_REQUEST_HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "x-request-id": ("An id: up to 128 letters, digits, dots, underscores and hyphens, or another is drawn.",
                     _TEXT),
    "traceparent": ("The trace that the request belongs to (W3C Trace Context).", _TEXT),
}
DEADLINE_HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "x-queue-timeout": ("Seconds that the request may wait for its first step, if less than the server's.", _SECONDS),
    "x-ttft-timeout": ("Seconds to the first token, if less than the server's.", _SECONDS),
    "x-request-timeout": ("Seconds that the request may take in all, if less than the server's.", _SECONDS),
}
REQUEST_HEADERS = ANY_REQUEST_HEADERS | DEADLINE_HEADERS | {
    "if-none-match": ("The ETag of what the client has.", _TEXT)}

# What a page in a browser may read of a reply of another origin, if that lets it read any.
EXPOSED = ("x-request-id", *RETRY, "warning", *RATES)
