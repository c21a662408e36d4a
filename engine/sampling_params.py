"""What a caller may ask of sampling: ranges, defaults and the messages of refusal.

`SamplingParams` is the public, text-side form; `quire.engine.messages.Sampling` is the numbers that cross to the core.
Refuses to know tokenizers and models: limits that need them are checked by `quire.engine.frontend.submission`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from operator import attrgetter, index, is_not
from typing import Any

from quire.engine.arguments import finite, flag, integer, is_integer, listed, mapping, number, shown, unsupported
from quire.engine.errors import InvalidRequestError
from quire.engine.structured_outputs import FIELDS, StructuredOutputsParams

MAX_N = 16384  # the service has limits of its own, which are lower
GREEDY_BELOW = 1e-5
MIN_TEMPERATURE = 0.01
MAX_BIAS = 100.0
MAX_LENGTH_PENALTY = 10.0  # and its negative: lengths to that power stay numbers
MAX_REPETITION = 1e4  # and its inverse: beyond them logits leave the range of their type


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


def _unsupported(default: Any = None, *others: Any) -> Any:
    """A field that this version does not implement: it takes the values that ask for nothing."""
    return field(default=default, repr=False, metadata={"neutral": (default, *others)})


@dataclass(slots=True, kw_only=True)
class SamplingParams:
    """Sampling of one request; the fields, defaults and ranges are vLLM's.

    Raises:
        InvalidRequestError: a value is of the wrong type, out of range or not supported; `param` names the field.
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
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputsParams | None = None  # or a dictionary of its fields
    shown_token_ids: frozenset[int] = frozenset()  # Quire's: special tokens that skip_special_tokens does not skip

    prompt_logprob_token_ids: None = _unsupported()
    prompt_logprob_start: None = _unsupported()
    logprob_token_ids: None = _unsupported()
    flat_logprobs: bool = _unsupported(False)
    stream_interval: None = _unsupported(None, 1)
    skip_clone: bool = _unsupported(False, True)  # how vLLM copies the object
    extra_args: None = _unsupported(None, {})
    skip_reading_prefix_cache: None = _unsupported(None, False)
    thinking_token_budget: None = _unsupported(None, -1)
    repetition_detection: None = _unsupported()
    routed_experts_prompt_start: int = _unsupported(0)
    trace_decode_token_ids: None = _unsupported()
    # Beam search, of which the n best sequences of best_of (n if None) beams are given.
    use_beam_search: bool = False
    best_of: int | None = None
    length_penalty: float = 1.0
    early_stopping: bool | str = False  # or "never"
    length_counts_prompt: bool = False  # Quire's: lengths are counted as vLLM does

    # Of older versions.
    guided_decoding: StructuredOutputsParams | None = None
    logits_processors: None = _unsupported(None, [])
    truncate_prompt_tokens: None = _unsupported()

    def __post_init__(self) -> None:
        texts = [self.stop] if isinstance(self.stop, str) else self.stop
        self.stop = listed("stop", texts, "a string or a list of strings")
        self.stop_token_ids = listed("stop_token_ids", self.stop_token_ids, "a list of integers")
        self.bad_words = listed("bad_words", self.bad_words, "a list of strings")
        self.structured_outputs, self.guided_decoding = _form(self.structured_outputs, self.guided_decoding), None
        self._check()
        self.stop_token_ids = list(dict.fromkeys(map(index, self.stop_token_ids)))
        if self.seed == -1:
            self.seed = None
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
        self.n = integer("n", self.n, 1, MAX_N)
        self.presence_penalty = number("presence_penalty", self.presence_penalty, -2, 2)
        self.frequency_penalty = number("frequency_penalty", self.frequency_penalty, -2, 2)
        self.temperature = number("temperature", self.temperature, 0, 2)
        self.top_p = number("top_p", self.top_p, 0, 1, low_excluded=True)
        self.min_p = number("min_p", self.min_p, 0, 1)
        self.repetition_penalty = finite("repetition_penalty", self.repetition_penalty)
        if self.repetition_penalty <= 0:
            raise InvalidRequestError("repetition_penalty must be greater than zero, got "
                                      f"{shown(self.repetition_penalty)}.", "repetition_penalty")
        number("repetition_penalty", self.repetition_penalty, 1 / MAX_REPETITION, MAX_REPETITION)
        if is_integer(self.top_k) and self.top_k < -1:
            raise InvalidRequestError(f"top_k must be 0 (disable), or at least 1, got {shown(self.top_k)}.", "top_k")
        self.top_k = integer("top_k", self.top_k, -1, 2**31 - 1)
        if self.seed is not None:
            self.seed = integer("seed", self.seed, -(2**63), 2**63 - 1)
        self._check_lengths()
        self._check_stops()
        self._check_vocabulary()
        for name in _FLAGS:
            flag(name, getattr(self, name))
        self._check_beams()
        if not isinstance(self.output_kind, RequestOutputKind):
            raise InvalidRequestError(f"output_kind must be a RequestOutputKind, got {shown(self.output_kind)}.",
                                      "output_kind")
        if any(map(is_not, _unsupported_values(self), _UNSUPPORTED_DEFAULTS)):
            for name, neutral in _UNSUPPORTED.items():
                unsupported(name, getattr(self, name), *neutral)

    def _check_lengths(self) -> None:
        if self.max_tokens is not None:
            self.max_tokens = integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        self.min_tokens = integer("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens must be less than or equal to max_tokens={self.max_tokens}, got {self.min_tokens}.",
                "min_tokens")
        if self.logprobs is not None:
            self.logprobs = integer("logprobs", self.logprobs, -1, 2**31 - 1)
        if self.prompt_logprobs is not None:
            self.prompt_logprobs = integer("prompt_logprobs", self.prompt_logprobs, -1, 2**31 - 1)

    def _check_stops(self) -> None:
        for text in self.stop or []:
            if not isinstance(text, str):
                raise InvalidRequestError(f"stop must contain only strings, got {shown(text)}.", "stop")
            if not text:
                raise InvalidRequestError("stop cannot contain an empty string.", "stop")
        if self.stop and not self.detokenize:
            raise InvalidRequestError("stop strings need detokenize=True.", "stop")
        for token in self.stop_token_ids or []:
            if not is_integer(token):
                raise InvalidRequestError(f"stop_token_ids must contain only integers, got {shown(token)}.",
                                          "stop_token_ids")


    def _check_beams(self) -> None:
        if self.best_of is not None:
            self.best_of = integer("best_of", self.best_of, 1, MAX_N)
            if self.best_of < self.n:
                raise InvalidRequestError(f"best_of must be at least n, which is {self.n}, got {self.best_of}.",
                                          "best_of")
        if self.early_stopping != "never":
            flag("early_stopping", self.early_stopping, 'True, False or "never"')
            self.early_stopping = bool(self.early_stopping)
        self.length_penalty = number("length_penalty", self.length_penalty, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY)
        if not self.use_beam_search:
            if self.best_of is not None and self.best_of > self.n:
                raise InvalidRequestError(
                    f"best_of is the number of beams of a beam search, and without use_beam_search it may only be n, "
                    f"which is {self.n}; got {self.best_of}. To choose among samples, ask for more with n, and for "
                    "logprobs.", "best_of")
            for name, neutral in (("length_penalty", 1.0), ("early_stopping", False), ("length_counts_prompt", False)):
                if getattr(self, name) != neutral:
                    raise InvalidRequestError(f"{name} needs use_beam_search=True.", name)
            return
        if not self.greedy:
            raise InvalidRequestError("temperature must be 0 with use_beam_search, which draws nothing, got "
                                      f"{shown(self.temperature)}.", "temperature")
        for name, values in _NOT_WITH_BEAMS.items():
            if getattr(self, name) not in values:
                raise InvalidRequestError(f"{name} is not supported with use_beam_search; leave it out.", name)

    def _check_vocabulary(self) -> None:
        """What asks for some tokens, or against them; whether the model has such tokens is checked later."""
        if self.logit_bias is not None:
            self.logit_bias = dict(_bias(*item) for item in mapping("logit_bias", self.logit_bias).items()) or None
        if self.allowed_token_ids is not None:
            allowed = listed("allowed_token_ids", self.allowed_token_ids, "a list of integers")
            if not allowed:
                raise InvalidRequestError("allowed_token_ids is empty, so that no token could be drawn; leave it out "
                                          "to allow all.", "allowed_token_ids")
            for token in allowed:
                if not is_integer(token):
                    raise InvalidRequestError(f"allowed_token_ids must contain only integers, got {shown(token)}.",
                                              "allowed_token_ids")
            self.allowed_token_ids = list(dict.fromkeys(map(index, allowed)))
        for text in self.bad_words or []:
            if not isinstance(text, str):
                raise InvalidRequestError(f"bad_words must contain only strings, got {shown(text)}.", "bad_words")
            if not text.strip():
                raise InvalidRequestError("bad_words cannot contain an empty string.", "bad_words")


def _form(wanted: Any, older: Any) -> StructuredOutputsParams | None:
    """Of the field and its older name, what is given."""
    name = "structured_outputs" if older is None else "guided_decoding"
    given = wanted if older is None else older
    if wanted is not None and older is not None:
        raise InvalidRequestError("guided_decoding is the older name of structured_outputs; give one of them.", name)
    if isinstance(given, dict):
        unknown = given.keys() - FIELDS
        if unknown:
            raise InvalidRequestError(f"{name} has no {', '.join(map(shown, sorted(unknown, key=str)))}; it has "
                                      f"{', '.join(FIELDS)}.", name)
        return StructuredOutputsParams(**{"name": name, **given})
    if given is not None and not isinstance(given, StructuredOutputsParams):
        raise InvalidRequestError(f"{name} must be StructuredOutputsParams, got {shown(given)}.", name)
    return given


def _bias(token: Any, value: Any) -> tuple[int, float]:
    """JSON has strings for keys. Clamped, as OpenAI's service and vLLM do."""
    if isinstance(token, str) and token.isascii() and token.isdigit():
        token = int(token)
    if not is_integer(token):
        raise InvalidRequestError(f"logit_bias has the key {shown(token)}, which is no token id "
                                  "(/tokenize and LLM.get_tokenizer() tell those of a text).", "logit_bias")
    return index(token), min(max(float(finite("logit_bias", value)), -MAX_BIAS), MAX_BIAS)


_FLAGS = ("ignore_eos", "detokenize", "skip_special_tokens", "spaces_between_special_tokens",
          "include_stop_str_in_output", "use_beam_search", "length_counts_prompt")
# What edits a beam's likeliest tokens, or ends a text where the engine knows only tokens; and what asks for neither.
_NOT_WITH_BEAMS: dict[str, tuple[Any, ...]] = {
    "stop": ([], None), "presence_penalty": (0.0,), "frequency_penalty": (0.0,), "repetition_penalty": (1.0,),
    "logit_bias": (None, {}), "allowed_token_ids": (None,), "bad_words": ([], None), "structured_outputs": (None,),
}
_UNSUPPORTED = {f.name: f.metadata["neutral"] for f in fields(SamplingParams) if "neutral" in f.metadata}
_UNSUPPORTED_DEFAULTS = [neutral[0] for neutral in _UNSUPPORTED.values()]
_unsupported_values = attrgetter(*_UNSUPPORTED)
