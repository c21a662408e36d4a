"""The request fields that the APIs share, and how they become SamplingParams.

A client's value wins over the model's own default (generation_config.json), which wins over SamplingParams'.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from quire.app.errors import ApiError
from quire.app.schemas import meanings
from quire.app.schemas.described import about, json_of, within
from quire.app.schemas.form import FormFields, stated_form
from quire.app.schemas.response_format import ResponseFormat
from quire.app.settings import ServeSettings
from quire.engine.arguments import shown
from quire.engine.frontend.submission import MAX_BAD_WORDS
from quire.engine.sampling_params import MAX_LENGTH_PENALTY, MAX_REPETITION, RequestOutputKind, SamplingParams
from quire.engine.structured_outputs import StructuredOutputsParams

_PASSED_ON = frozenset({
    "n", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "top_k", "min_p",
    "seed", "stop_token_ids", "ignore_eos", "min_tokens", "skip_special_tokens", "logit_bias", "allowed_token_ids",
    "bad_words", "prompt_logprobs", "use_beam_search", "best_of", "length_penalty", "early_stopping",
    "length_counts_prompt",
    "spaces_between_special_tokens", "include_stop_str_in_output",
})
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


class SamplingFields(FormFields, frozen=True, kw_only=True):
    """What every API takes that generates. None everywhere means "not given"."""

    model: Annotated[str | None, meanings.MODEL] = None
    stream: Annotated[bool, meanings.STREAM] = False
    stream_options: Annotated[StreamOptions | None, about("What a stream tells beside the text.")] = None
    min_tokens: Annotated[
        Annotated[int, within(0)] | None, about("Tokens before which the output does not end.")] = None
    temperature: Annotated[Annotated[float, within(0, 2)] | None, meanings.TEMPERATURE] = None
    top_p: Annotated[Annotated[float, within(above=0, high=1)] | None, meanings.TOP_P] = None
    top_k: Annotated[
        Annotated[int, within(-1, 2**31 - 1)] | None,
        about("Tokens are drawn from this many of the likeliest; 0 and -1: from all.")] = None
    min_p: Annotated[
        Annotated[float, within(0, 1)] | None,
        about("The least probability of a token that may be drawn, as a share of the likeliest one's.")] = None
    seed: Annotated[Annotated[int, within(-(2**63), 2**63 - 1)] | None, meanings.SEED] = None
    stop: Annotated[str | list[str] | None, about("Texts at which the output ends, without them.")] = None
    stop_token_ids: Annotated[list[int] | None, about("Tokens at which the output ends.")] = None
    presence_penalty: Annotated[
        Annotated[float, within(-2, 2)] | None, about("Taken off the logit of each token that the output has.")] = None
    frequency_penalty: Annotated[
        Annotated[float, within(-2, 2)] | None,
        about("Taken off a token's logit as often as the output has it.")] = None
    repetition_penalty: Annotated[
        Annotated[float, within(1 / MAX_REPETITION, MAX_REPETITION)] | None,
        about("Divides the logits of tokens that prompt or output have; 1 changes nothing.")] = None
    logit_bias: Annotated[
        dict[str, float] | None, about("What is added to the logits of these token ids, from -100 to 100.")] = None
    allowed_token_ids: Annotated[list[int] | None, about("The only tokens that may be drawn.")] = None
    bad_words: Annotated[list[str] | None, about("Words that the output may not have.")] = None
    ignore_eos: Annotated[bool | None, about("Whether the output goes on behind the model's end of text.")] = None
    skip_special_tokens: Annotated[bool | None, about("Whether special tokens are left out of the text (true).")] = None
    spaces_between_special_tokens: Annotated[
        bool | None, about("Whether special tokens in the text have spaces between them (true).")] = None
    include_stop_str_in_output: Annotated[
        bool | None, about("Whether the text ends with the stop text that it ended at (false).")] = None
    priority: Annotated[int, within(-(2**31), 2**31 - 1), meanings.PRIORITY] = 0
    cache_salt: Annotated[str, meanings.CACHE_SALT] = ""
    add_special_tokens: Annotated[
        bool | None, about("Whether the tokenizer puts its own tokens around the prompt.")] = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and self.stream_options is not None and bool(
            self.stream_options.continuous_usage_stats)

    def check_sampling(self, settings: ServeSettings) -> None:
        """Raises ApiError for what is out of the limits of the service; the values' own ranges are SamplingParams'."""
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options may be given only with stream: true.", "stream_options")
        check_place(self.priority, self.cache_salt)
        check_at_most("stop", len(self.stops), settings.max_stop_sequences, "--max-stop-sequences", "strings")
        check_at_most("stop", max(map(len, self.stops), default=0), MAX_STOP_CHARACTERS, what="characters in a string")
        check_at_most("stop_token_ids", len(self.stop_token_ids or []), MAX_STOP_TOKEN_IDS, what="ids")
        check_at_most("logit_bias", len(self.logit_bias or {}), MAX_BIASES, what="token ids")
        check_at_most("bad_words", len(self.bad_words or []), MAX_BAD_WORDS, what="words")
        check_at_most("bad_words", max(map(len, self.bad_words or []), default=0), MAX_STOP_CHARACTERS,
                      what="characters in a word")

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def sampling_params(self, model_defaults: dict[str, Any], max_tokens: int | None,
                        logprobs: int | None) -> SamplingParams:
        """Raises InvalidRequestError where a value is out of range."""
        values = self._defaults(model_defaults)
        for name in self.__struct_fields__:
            if name in _PASSED_ON and (value := getattr(self, name)) is not None:
                values[name] = value
        if (form := self.form) is not None:
            values["structured_outputs"] = form
        stop = [text for text in self.stops if text]  # an empty one, as forms send for "none", would end all at once
        # Deltas also for a reply that is sent whole: the times of its first and last token are measured on them.
        return SamplingParams(**values, stop=stop, max_tokens=max_tokens, logprobs=logprobs,
                              output_kind=RequestOutputKind.DELTA)

    def _defaults(self, of_model: dict[str, Any]) -> dict[str, Any]:
        return {name: of_model[name] for name in _MODEL_DEFAULTS if of_model.get(name) is not None}


class GenerationRequest(SamplingFields, frozen=True, kw_only=True):
    """What chat and completions take beyond that: several samples, beams, and OpenAI's names of that time."""

    n: Annotated[Annotated[int, within(1)] | None, about("How many answers to the prompt.")] = None
    best_of: Annotated[
        Annotated[int, within(1)] | None, about("How many are written, of which the best `n` come back.")] = None
    max_tokens: Annotated[
        Annotated[int, within(0)] | None, about("The most tokens of the output.")] = None
    response_format: Annotated[
        Annotated[dict[str, Any], json_of(ResponseFormat)] | None,
        about("The form of the output: text, any JSON object, or JSON by a schema.")] = None
    prompt_logprobs: Annotated[
        Annotated[int, within(0)] | None,
        about("With a whole reply: the logprobs of the prompt's tokens, with this many alternatives to each.")] = None
    use_beam_search: Annotated[
        bool | None, about("Whether the likeliest answers are searched for, in `best_of` or `n` beams.")] = None
    length_penalty: Annotated[
        Annotated[float, within(-MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY)] | None,
        about("Of beams: the power of the length that logprobs are divided by.")] = None
    early_stopping: Annotated[
        bool | str | None, about("Of beams: when the search ends, as transformers has it.")] = None
    length_counts_prompt: Annotated[
        bool | None, about("Of beams: whether the length counts the prompt, as in vLLM.")] = None

    def check_common(self, settings: ServeSettings, num_prompts: int = 1) -> None:
        """As `check_sampling`, of all fields here."""
        self.check_sampling(settings)
        check_logprobs("prompt_logprobs", self.prompt_logprobs, settings)
        if self.prompt_logprobs is not None and self.stream:
            raise ApiError(400, "prompt_logprobs come with a whole reply only, not with a stream; send stream: false.",
                           "prompt_logprobs")
        check_at_most("n", self.n, settings.max_n, "--max-n")
        check_at_most("best_of", self.best_of, settings.max_n, "--max-n")
        name = "best_of" if self.best_of else "n"
        each = self.best_of or self.n or 1
        num_samples, max_samples = num_prompts * each, settings.engine.max_queued_requests
        if num_samples > max_samples:
            raise ApiError(400, f"{num_prompts} prompts with {name} = {each} make {num_samples} samples; a request "
                           f"may have at most {max_samples} (--max-queued-requests).", name)

    def _response_format(self) -> StructuredOutputsParams | None:
        return stated_form("response_format", self.response_format, within="json_schema")

    def _defaults(self, of_model: dict[str, Any]) -> dict[str, Any]:
        """The model's own are for drawing tokens, and a search draws none."""
        return {"temperature": 0.0} if self.use_beam_search else super()._defaults(of_model)
