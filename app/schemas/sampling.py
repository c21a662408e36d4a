"""The request fields that chat and completions share, and how they become SamplingParams.

A client's value wins over the model's own default (generation_config.json), which wins over SamplingParams'.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from quire.app.errors import ApiError
from quire.app.schemas.described import within
from quire.app.schemas.form import FormFields
from quire.app.settings import ServeSettings
from quire.engine.arguments import shown
from quire.engine.frontend.submission import MAX_BAD_WORDS
from quire.engine.sampling_params import MAX_LENGTH_PENALTY, MAX_REPETITION, RequestOutputKind, SamplingParams

_PASSED_ON = (
    "n", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "top_k", "min_p",
    "seed", "stop_token_ids", "ignore_eos", "min_tokens", "skip_special_tokens", "logit_bias", "allowed_token_ids",
    "bad_words", "prompt_logprobs", "use_beam_search", "best_of", "length_penalty", "early_stopping",
    "length_counts_prompt",
    "spaces_between_special_tokens", "include_stop_str_in_output",
)
_MODEL_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

MAX_SALT_CHARACTERS = 256
MAX_STOP_CHARACTERS = 1000
MAX_BIASES = 1024  # sent to the device with each step
MAX_STOP_TOKEN_IDS = 128  # each is compared with every token


def check_at_most(name: str, value: int | None, limit: int, flag: str = "", what: str = "") -> None:
    """Raises ApiError (400) for a `value` beyond `limit`, which is the `flag`'s; `what` it is a number of."""
    if value is not None and value > limit:
        set_by = f" ({flag})" if flag else ""
        if what:
            raise ApiError(400, f"{name} may have at most {limit} {what}{set_by}, got {shown(value)}.", name)
        raise ApiError(400, f"{name} must be at most {limit}{set_by}, got {shown(value)}.", name)


def check_place(priority: int, cache_salt: str) -> None:
    """Raises ApiError (400) for what cannot be a place in the queue or in the prefix cache."""
    if not -(2**31) <= priority < 2**31:
        raise ApiError(400, f"priority must be from {-2**31} to {2**31 - 1}, got {shown(priority)}.", "priority")
    check_at_most("cache_salt", len(cache_salt), MAX_SALT_CHARACTERS, what="characters")


def check_logprobs(name: str, value: int | None, settings: ServeSettings) -> None:
    """Raises ApiError (400) for an impossible number of alternatives to each token."""
    if value is not None and value < 0:
        raise ApiError(400, f"{name} must be at least 0, got {shown(value)}.", name)
    if settings.engine.max_logprobs >= 0:
        check_at_most(name, value, settings.engine.max_logprobs, "--max-logprobs")


def check_max_tokens(name: str, value: int | None, left_out: str) -> None:
    """Raises ApiError (400) for a number of tokens that nobody can want; `left_out` is what null stands for."""
    if value is not None and value < 1:
        raise ApiError(400, f"{name} must be at least 1, got {shown(value)}; leave it out for {left_out}.", name)


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # padding against traffic analysis that OpenAI adds; here there is none


class GenerationRequest(FormFields, frozen=True, kw_only=True):
    """None everywhere means "not given"."""

    model: str | None = None
    n: Annotated[int, within(1)] | None = None
    best_of: Annotated[int, within(1)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    use_beam_search: bool | None = None
    length_penalty: Annotated[float, within(-MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY)] | None = None
    early_stopping: bool | str | None = None
    length_counts_prompt: bool | None = None
    max_tokens: Annotated[int, within(0)] | None = None
    min_tokens: Annotated[int, within(0)] | None = None
    temperature: Annotated[float, within(0, 2)] | None = None
    top_p: Annotated[float, within(above=0, high=1)] | None = None
    top_k: Annotated[int, within(-1, 2**31 - 1)] | None = None
    min_p: Annotated[float, within(0, 1)] | None = None
    seed: Annotated[int, within(-(2**63), 2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    presence_penalty: Annotated[float, within(-2, 2)] | None = None
    frequency_penalty: Annotated[float, within(-2, 2)] | None = None
    repetition_penalty: Annotated[float, within(1 / MAX_REPETITION, MAX_REPETITION)] | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: Annotated[int, within(0)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    priority: Annotated[int, within(-(2**31), 2**31 - 1)] = 0
    cache_salt: str = ""
    add_special_tokens: bool | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and self.stream_options is not None and bool(
            self.stream_options.continuous_usage_stats)

    def check_common(self, settings: ServeSettings, num_prompts: int = 1) -> None:
        """Raises ApiError for what is out of the limits of the service; the values' own ranges are SamplingParams'."""
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options may be given only with stream: true.", "stream_options")
        check_place(self.priority, self.cache_salt)
        check_logprobs("prompt_logprobs", self.prompt_logprobs, settings)
        if self.prompt_logprobs is not None and self.stream:
            raise ApiError(400, "prompt_logprobs come with a whole reply only, not with a stream; send stream: false.",
                           "prompt_logprobs")
        self._check_counts(settings, num_prompts)

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def _check_counts(self, settings: ServeSettings, num_prompts: int) -> None:
        check_at_most("n", self.n, settings.max_n, "--max-n")
        check_at_most("best_of", self.best_of, settings.max_n, "--max-n")
        name = "best_of" if self.best_of else "n"
        each = self.best_of or self.n or 1
        num_samples, max_samples = num_prompts * each, settings.engine.max_queued_requests
        if num_samples > max_samples:
            raise ApiError(400, f"{num_prompts} prompts with {name} = {each} make {num_samples} samples; a request "
                           f"may have at most {max_samples} (--max-queued-requests).", name)
        check_at_most("stop", len(self.stops), settings.max_stop_sequences, "--max-stop-sequences", "strings")
        check_at_most("stop", max(map(len, self.stops), default=0), MAX_STOP_CHARACTERS, what="characters in a string")
        check_at_most("stop_token_ids", len(self.stop_token_ids or []), MAX_STOP_TOKEN_IDS, what="ids")
        check_at_most("logit_bias", len(self.logit_bias or {}), MAX_BIASES, what="token ids")
        check_at_most("bad_words", len(self.bad_words or []), MAX_BAD_WORDS, what="words")
        check_at_most("bad_words", max(map(len, self.bad_words or []), default=0), MAX_STOP_CHARACTERS,
                      what="characters in a word")

    def sampling_params(self, model_defaults: dict[str, Any], max_tokens: int | None,
                        logprobs: int | None) -> SamplingParams:
        """Raises InvalidRequestError where a value is out of range."""
        values: dict[str, Any] = {name: model_defaults[name] for name in _MODEL_DEFAULTS
                                  if model_defaults.get(name) is not None}
        if self.use_beam_search:  # the model's defaults are for drawing tokens
            values = {"temperature": 0.0}
        for name in _PASSED_ON:
            value = getattr(self, name)
            if value is not None:
                values[name] = value
        if (form := self.form) is not None:
            values["structured_outputs"] = form
        stop = [text for text in self.stops if text]  # an empty one, as forms send for "none", would end all at once
        # Deltas also for a reply that is sent whole: the times of its first and last token are measured on them.
        return SamplingParams(**values, stop=stop, max_tokens=max_tokens, logprobs=logprobs,
                              output_kind=RequestOutputKind.DELTA)
