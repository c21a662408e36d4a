"""The errors that cross a border: each names its field, and an HTTP front can turn each into one reply.

Called by everyone; of ours it knows only the types that it carries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quire.engine.messages import RateState


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


class ContextLengthError(InvalidRequestError):
    """Prompt and output together are longer than a request may be."""

    def __init__(self, max_model_len: int, num_prompt: int, max_tokens: int, *, at_least: bool = False,
                 field: str = "max_tokens", reason: str = "", remedy: str = "", num_image_tokens: int = 0) -> None:
        """`at_least`: the prompt was not tokenized, it has no fewer tokens than that. `field` asked for the output;
        `reason` says why the limit is not the model's own, `remedy` what whoever runs the server can do.
        `num_image_tokens` of the prompt's tokens stand for its images."""
        self.max_model_len = max_model_len
        self.num_prompt = num_prompt
        self._max_tokens = max_tokens
        self._at_least = at_least
        self._field = field
        of_images = (f" Its images take {num_image_tokens} of the prompt's tokens; a smaller max_pixels in "
                     "mm_processor_kwargs makes them fewer." if num_image_tokens else "")
        self._num_image_tokens = num_image_tokens
        least = "at least " if at_least else ""
        if not max_tokens:  # of a prompt that yields a vector
            super().__init__(f"This model's maximum context length is {max_model_len} tokens{reason}. However, your "
                             f"prompt contains {least}{num_prompt} tokens. Please reduce its length, or ask for its "
                             f"beginning with truncate_prompt_tokens{remedy}.", "prompt")
            return
        super().__init__(
            f"This model's maximum context length is {max_model_len} tokens{reason}. However, you requested "
            f"{max_tokens} output tokens and your prompt contains {least}{num_prompt} input tokens, for a total of "
            f"{least}{num_prompt + max_tokens} tokens. Please reduce the length of the prompt or {field}{remedy}."
            f"{of_images}",
            "prompt" if num_prompt >= max_model_len else field)

    def explained(self, reason: str, remedy: str) -> ContextLengthError:
        """The same with what is known only to those who know the settings."""
        return ContextLengthError(self.max_model_len, self.num_prompt, self._max_tokens, at_least=self._at_least,
                                  field=self._field, reason=reason, remedy=remedy,
                                  num_image_tokens=self._num_image_tokens)

    def of_images(self, num_image_tokens: int) -> ContextLengthError:
        """The same with how many of the prompt's tokens are images'."""
        return ContextLengthError(self.max_model_len, self.num_prompt, self._max_tokens, at_least=self._at_least,
                                  field=self._field, num_image_tokens=num_image_tokens)


NOTHING_LEFT_TO_DRAW = ("No token is left that could be drawn: together, allowed_token_ids, bad_words, logit_bias, "
                        "min_tokens (which holds back the stop tokens) and the form asked for exclude all of them. "
                        "A form that has become too costly to follow excludes all by itself.")


NO_HEAD = ("This model has no head that goes on with a text, so it does not generate: it makes embeddings "
           "(/v1/embeddings, LLM.embed).")


def context_length_error(max_model_len: int, num_prompt: int, max_tokens: int, *,
                         at_least: bool = False) -> InvalidRequestError:
    return ContextLengthError(max_model_len, num_prompt, max_tokens, at_least=at_least)


class OverloadedError(QuireError):
    """The request could be served later (HTTP 429 or 503).

    `retry_after_s` says when to try again, `reason` (one of messages.REJECTIONS, or a word of the worker's own) why not
    now. Requests alike may be refused without asking for the next `closed_s`.
    """

    def __init__(self, message: str, retry_after_s: float, *, own_limit: bool = False, reason: str = "",
                 rate: RateState | None = None, closed_s: float = 0.0, spacing_s: float = 0.0) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.own_limit = own_limit  # True: the caller's own limit (429); False: no capacity (503)
        self.reason = reason
        self.rate = rate  # where the key stands with its limits a minute
        self.closed_s = closed_s
        self.spacing_s = spacing_s


class ConfigError(QuireError, ValueError):
    """The configuration cannot be run. `problems` holds every one of them, not just the first."""

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else problems
        super().__init__("\n".join(self.problems))


class PassingError(ConfigError):
    """The configuration cannot be run now, for a reason that may pass."""


class FetchError(PassingError):
    """A model could not be fetched: the network, or a hub that is not well."""


class MemoryShortageError(PassingError):
    """There is less memory now than was asked for."""


class WeightError(QuireError):
    """A checkpoint does not fit its model; the message names the tensor."""


class RankError(QuireError):
    """A device process of the engine ended or broke; the message says which and, in its own words, why.

    `killed`: it was killed from outside (an operator, the kernel short of memory), and did not break by itself.
    """

    def __init__(self, message: str, *, killed: bool = False) -> None:
        super().__init__(message)
        self.killed = killed


class MisuseError(QuireError, RuntimeError):
    """An object is used where it cannot work, as in another event loop or in a forked child; the message says what to
    do instead."""


class EngineDeadError(QuireError):
    """The engine ended and is not coming back."""


class PoisonRequestError(EngineDeadError):
    """This request was given up because the engine died of it, or seems to have, more than once."""
