"""The shape of errors on the paths of Anthropic's API: statuses are ours, the words theirs.

Asked by `quire.app.errors`, whoever refused the request, and by the stream of an answer that fails midway.
"""

from __future__ import annotations

import msgspec

PATHS = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error",
          413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error"}


class ErrorWords(msgspec.Struct):
    type: str
    message: str


class AnthropicError(msgspec.Struct, tag_field="type", tag="error"):
    error: ErrorWords
    request_id: str | msgspec.UnsetType = msgspec.UNSET


def error_body(status: int, message: str, request_id: str = "") -> bytes:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return msgspec.json.encode(AnthropicError(ErrorWords(kind, message), request_id or msgspec.UNSET))
