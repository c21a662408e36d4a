"""Every refusal and failure as one reply: OpenAI's error object, the status, the headers that belong to it.

Turns the engine's exceptions into replies, so that nothing else in the service knows a status code of theirs. Messages
shown to clients are our own sentences; the text of an unexpected exception never leaves the process.
"""

from __future__ import annotations

import math

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from engine.errors import EngineDeadError, InvalidRequestError, OverloadedError

_TYPES = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError", 405: "MethodNotAllowedError",
          408: "TimeoutError", 413: "RequestTooLargeError", 429: "RateLimitError", 500: "InternalServerError",
          503: "ServiceUnavailableError"}
INTERNAL = "Internal server error. The server's log holds the cause under this request's x-request-id."


class ApiError(Exception):
    """A refusal that is ready to be sent."""

    def __init__(self, status: int, message: str, param: str | None = None,
                 headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.headers = headers or {}

    def body(self) -> bytes:
        """vLLM's types and integer codes in OpenAI's object."""
        return msgspec.json.encode({"error": {
            "message": self.message, "type": _TYPES.get(self.status, "APIError"), "param": self.param,
            "code": self.status}})


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of `error`; an exception that nobody foresaw becomes a bare 500."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidRequestError):
        return ApiError(400, error.message, error.param)
    if isinstance(error, OverloadedError):
        retry_after = {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
        return ApiError(429 if error.own_limit else 503, error.message, headers=retry_after)
    if isinstance(error, EngineDeadError):
        return ApiError(503, str(error))
    return ApiError(500, INTERNAL)


def error_response(error: ApiError) -> Response:
    return Response(error.body(), error.status, error.headers, "application/json")


async def on_known_error(request: Request, error: Exception) -> Response:
    return error_response(as_api_error(error))


async def on_unknown_path(request: Request, error: Exception) -> Response:
    return error_response(ApiError(404, f"There is no {request.url.path} here."))


async def on_wrong_method(request: Request, error: Exception) -> Response:
    headers = getattr(error, "headers", None) or {}
    allowed = headers.get("Allow", "another method")
    return error_response(ApiError(
        405, f"{request.url.path} takes {allowed}, not {request.method}.", headers=dict(headers)))


HANDLERS = {
    404: on_unknown_path,
    405: on_wrong_method,
    ApiError: on_known_error,
    InvalidRequestError: on_known_error,
    OverloadedError: on_known_error,
    EngineDeadError: on_known_error,
}
