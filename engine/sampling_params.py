"""What a caller may ask of sampling: ranges, defaults and the messages of refusal.

`SamplingParams` is the public, text-side form; `engine.messages.Sampling` is the numbers that cross to the core.
Refuses to know tokenizers and models: limits that need them are checked by `engine.frontend.submission`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from engine.errors import InvalidRequestError

MAX_N = 16384  # the service has limits of its own, which are lower
GREEDY_BELOW = 1e-5
MIN_TEMPERATURE = 0.01
MAX_REPETITION = 1e4  # and its inverse: beyond them logits leave the range of their type


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass(slots=True, kw_only=True)
class SamplingParams:
    """Sampling of one request; the fields, defaults and ranges are vLLM's.

    Raises:
        InvalidRequestError: a value is out of range; `param` names the field.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        self.stop = list(self.stop or [])
        self.stop_token_ids = list(dict.fromkeys(self.stop_token_ids or []))
        if self.seed == -1:
            self.seed = None
        self._check()
        if 0 < self.temperature < GREEDY_BELOW:
            self.temperature = 0.0
        elif 0 < self.temperature < MIN_TEMPERATURE:
            self.temperature = MIN_TEMPERATURE
        if self.top_k == -1:
            self.top_k = 0

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    def _check(self) -> None:
        _integer("n", self.n, 1, MAX_N)
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        _number("temperature", self.temperature, 0, 2)
        _number("min_p", self.min_p, 0, 1)
        if not _is_number(self.repetition_penalty):
            raise InvalidRequestError(f"repetition_penalty must be a finite number, got {self.repetition_penalty!r}.",
                                      "repetition_penalty")
        if self.repetition_penalty <= 0:
            raise InvalidRequestError(f"repetition_penalty must be greater than zero, got {self.repetition_penalty}.",
                                      "repetition_penalty")
        _number("repetition_penalty", self.repetition_penalty, 1 / MAX_REPETITION, MAX_REPETITION)
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise InvalidRequestError(f"top_p must be in (0, 1], got {self.top_p!r}.", "top_p")
        if not _is_integer(self.top_k) or self.top_k < -1:
            raise InvalidRequestError(f"top_k must be 0 (disable), or at least 1, got {self.top_k!r}.", "top_k")
        _integer("top_k", self.top_k, -1, 2**31 - 1)
        if self.n > 1 and self.greedy:
            raise InvalidRequestError(f"n must be 1 when using greedy sampling, got {self.n}.", "n")
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**63 - 1)
        self._check_lengths()
        self._check_stops()

    def _check_lengths(self) -> None:
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _integer("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens must be less than or equal to max_tokens={self.max_tokens}, got {self.min_tokens}.",
                "min_tokens")
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, -1, 2**31 - 1)

    def _check_stops(self) -> None:
        assert isinstance(self.stop, list)
        for text in self.stop:
            if not isinstance(text, str):
                raise InvalidRequestError(f"stop must contain only strings, got {text!r}.", "stop")
            if not text:
                raise InvalidRequestError("stop cannot contain an empty string.", "stop")
        if self.stop and not self.detokenize:
            raise InvalidRequestError("stop strings need detokenize=True.", "stop")
        for token in self.stop_token_ids or []:
            if not _is_integer(token):
                raise InvalidRequestError(f"stop_token_ids must contain only integers, got {token!r}.",
                                          "stop_token_ids")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(name: str, value: Any, low: float, high: float) -> None:
    if not _is_number(value) or not low <= value <= high:
        raise InvalidRequestError(f"{name} must be in [{low}, {high}], got {value!r}.", name)


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if not _is_integer(value):
        raise InvalidRequestError(f"{name} must be an integer, got {value!r}.", name)
    if value < low:
        raise InvalidRequestError(f"{name} must be at least {low}, got {value}.", name)
    if value > high:
        raise InvalidRequestError(f"{name} must be at most {high}, got {value}.", name)
