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


def context_length_error(max_model_len: int, num_prompt: int, max_tokens: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"This model's maximum context length is {max_model_len} tokens. However, you requested {max_tokens} output "
        f"tokens and your prompt contains {num_prompt} input tokens, for a total of {num_prompt + max_tokens} tokens. "
        "Please reduce the length of the prompt or max_tokens.",
        "prompt" if num_prompt >= max_model_len else "max_tokens")


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
