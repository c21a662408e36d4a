"""The request fields that chat and completions share, and how they become SamplingParams.

A client's value wins over the model's own default (generation_config.json), which wins over SamplingParams'.
"""

from __future__ import annotations

from typing import Any

import msgspec

from app.errors import ApiError
from engine.sampling_params import RequestOutputKind, SamplingParams

_PASSED_ON = (
    "n", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "top_k", "min_p",
    "seed", "stop", "stop_token_ids", "ignore_eos", "min_tokens", "skip_special_tokens",
    "spaces_between_special_tokens", "include_stop_str_in_output",
)
_MODEL_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # padding against traffic analysis that OpenAI adds; here there is none


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """None everywhere means "not given"."""

    model: str | None = None
    n: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    priority: int = 0
    cache_salt: str = ""
    add_special_tokens: bool | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and self.stream_options is not None and bool(
            self.stream_options.continuous_usage_stats)

    def check_common(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options may be given only with stream: true.", "stream_options")
        if not -(2**31) <= self.priority < 2**31:
            raise ApiError(400, f"priority must be within 32 bits, got {self.priority}.", "priority")

    def sampling_params(self, model_defaults: dict[str, Any], max_tokens: int | None,
                        logprobs: int | None) -> SamplingParams:
        """Raises InvalidRequestError where a value is out of range."""
        values: dict[str, Any] = {name: model_defaults[name] for name in _MODEL_DEFAULTS
                                  if model_defaults.get(name) is not None}
        for name in _PASSED_ON:
            value = getattr(self, name)
            if value is not None:
                values[name] = value
        # Deltas also for a reply that is sent whole: the times of its first and last token are measured on them.
        return SamplingParams(**values, max_tokens=max_tokens, logprobs=logprobs, output_kind=RequestOutputKind.DELTA)
