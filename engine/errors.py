"""The errors that cross a border: each names its field, and an HTTP front can turn each into one reply.

Called by everyone; imports nothing of ours.
"""

from __future__ import annotations


class QuireError(Exception):
    """Base of every error that is somebody's to read."""


class InvalidRequestError(QuireError, ValueError):
    """The request can never be served as it stands (HTTP 400).

    `param` is the request field at fault, or None where no single field is.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class OverloadedError(QuireError):
    """The request could be served later (HTTP 429 or 503). `retry_after_s` says when to try again."""

    def __init__(self, message: str, retry_after_s: float, *, own_limit: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.own_limit = own_limit  # True: the caller's own limit (429); False: no capacity (503)


class ConfigError(QuireError, ValueError):
    """The configuration cannot be run. `problems` holds every one of them, not just the first."""

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else problems
        super().__init__("\n".join(self.problems))


class WeightError(QuireError):
    """A checkpoint does not fit its model; the message names the tensor."""


class EngineDeadError(QuireError):
    """The engine ended and is not coming back, or this request was in flight at two crashes in a row."""
