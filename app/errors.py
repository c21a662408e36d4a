"""Every refusal and failure as one reply: OpenAI's error object (on Anthropic's paths theirs), the status, the headers
that belong to it.

Turns the engine's exceptions into replies, so that nothing else in the service knows a status code of theirs. Messages
shown to clients are our own sentences; the text of an unexpected exception never leaves the process.
"""

from __future__ import annotations

import math
from collections.abc import Container

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.app import anthropic_errors
from quire.app.telemetry.record import RequestRecord
from quire.engine.errors import EngineDeadError, InvalidRequestError, OverloadedError, PoisonRequestError
from quire.engine.messages import RateState

_TYPES = {400: "BadRequestError", 401: "AuthenticationError", 403: "PermissionDeniedError", 404: "NotFoundError",
          405: "MethodNotAllowedError", 408: "TimeoutError", 413: "RequestTooLargeError", 414: "RequestTooLargeError",
          415: "UnsupportedMediaTypeError", 429: "RateLimitError", 431: "RequestTooLargeError",
          500: "InternalServerError", 503: "ServiceUnavailableError", 504: "TimeoutError",
          505: "HTTPVersionNotSupportedError"}
_CODES = {401: "invalid_api_key"}  # OpenAI's words, where vLLM itself leaves its shape
# Why a request was refused, for metrics, where the error itself does not say.
_REASONS = {400: "invalid", 401: "key", 403: "key", 413: "body_too_large"}
_NOT_FOR_PROGRAMS = ("/admin", "/metrics", "/console/", "/docs/")  # paths that a client's mistake is not told of
INTERNAL = "Internal server error. The server's log holds the cause under this request's x-request-id."


class ApiError(Exception):
    """A refusal that is ready to be sent. `reason` is its word in metrics; a failure, which is no refusal, has none."""

    def __init__(self, status: int, message: str, param: str | None = None, headers: dict[str, str] | None = None,
                 reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.headers = headers or {}
        self.reason = reason or _REASONS.get(status, "")

    def body(self) -> bytes:
        """vLLM's types and integer codes in OpenAI's object."""
        return msgspec.json.encode({"error": {
            "message": self.message, "type": _TYPES.get(self.status, "APIError"), "param": self.param,
            "code": _CODES.get(self.status, self.status)}})


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of `error`; an exception that nobody foresaw becomes a bare 500."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidRequestError):
        return ApiError(400, error.message, error.param)
    if isinstance(error, OverloadedError):
        headers = retry_headers(error.retry_after_s) | rate_headers(error.rate)
        return ApiError(429 if error.own_limit else 503, error.message, headers=headers, reason=error.reason)
    if isinstance(error, PoisonRequestError):
        return ApiError(500, str(error), headers={"x-should-retry": "false"})
    if isinstance(error, EngineDeadError):
        return ApiError(503, str(error))
    return ApiError(500, INTERNAL)


def retry_headers(after_s: float) -> dict[str, str]:
    """When to come again: whole seconds for everyone, milliseconds for OpenAI's clients, which prefer them."""
    return {"retry-after": str(max(1, math.ceil(after_s))), "retry-after-ms": str(max(1, math.ceil(after_s * 1000)))}


def rate_headers(rate: RateState | None) -> dict[str, str]:
    """OpenAI's, of the limits a minute that the key has."""
    found: dict[str, str] = {}
    if rate is not None and rate.limit_requests:
        found |= _rate("requests", rate.limit_requests, rate.remaining_requests, rate.reset_requests_s)
    if rate is not None and rate.limit_tokens:
        found |= _rate("tokens", rate.limit_tokens, rate.remaining_tokens, rate.reset_tokens_s)
    return found


def _rate(what: str, limit: int, remaining: int, reset_s: float) -> dict[str, str]:
    return {f"x-ratelimit-limit-{what}": str(limit), f"x-ratelimit-remaining-{what}": str(max(0, remaining)),
            f"x-ratelimit-reset-{what}": duration(reset_s)}


def duration(seconds: float) -> str:
    """As OpenAI writes one: 120ms, 1.5s, 6m0s, 1h0m0s."""
    milliseconds = max(0, math.ceil(seconds * 1000))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{milliseconds / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def error_response(error: ApiError, record: RequestRecord) -> Response:
    """The one place where a refusal becomes a reply, and is noted for log and metrics."""
    record.rejected = error.reason
    headers = rate_headers(record.rate) | error.headers
    return Response(body_for(record, error), error.status, headers, "application/json")


def body_for(record: RequestRecord, error: ApiError) -> bytes:
    """In the shape of the API that the request's path belongs to."""
    if record.path in anthropic_errors.PATHS:
        return anthropic_errors.error_body(error.status, error.message, record.request_id)
    return error.body()


def _reply(request: Request, error: ApiError) -> Response:
    return error_response(error, request.scope["state"]["record"])


async def on_known_error(request: Request, error: Exception) -> Response:
    return _reply(request, as_api_error(error))


async def on_unknown_path(request: Request, error: Exception) -> Response:
    path = request.url.path[:200]
    paths = {route.path_format for route in request.app.routes if not route.path.startswith(_NOT_FOR_PROGRAMS)}
    paths.discard("/")
    sentences = [f"There is no {path} here.", _nearest(path, paths), f"The paths are {', '.join(sorted(paths))}."]
    return _reply(request, ApiError(404, " ".join(filter(None, sentences))))


def _nearest(path: str, paths: Container[str]) -> str:
    """What may be wrong with `path`; a base URL that lacks /v1, or has it where the client adds its own, is common."""
    if path.startswith("/v1/v1/"):
        return "It has /v1 twice: the client adds its own, so leave it out of the base URL."
    if f"/v1{path.rstrip('/')}" in paths:
        return f"Did you mean /v1{path.rstrip('/')}? The base URL of OpenAI's clients ends in /v1."
    near = path.rstrip("/") if path.rstrip("/") in paths else path.removeprefix("/v1")
    return f"Did you mean {near}?" if near in paths else ""


async def on_wrong_method(request: Request, error: Exception) -> Response:
    headers = getattr(error, "headers", None) or {}
    allowed = headers.get("Allow", "another method")
    return _reply(request, ApiError(
        405, f"{request.url.path[:200]} takes {allowed}, not {request.method}.", headers=dict(headers)))


HANDLERS = {
    404: on_unknown_path,
    405: on_wrong_method,
    ApiError: on_known_error,
    InvalidRequestError: on_known_error,
    OverloadedError: on_known_error,
    EngineDeadError: on_known_error,
}
