"""POST /v1/completions: what it takes and what it gives, beyond the fields that all generation shares."""

from __future__ import annotations

from typing import Any

import msgspec

from app.errors import ApiError
from app.schemas.sampling import GenerationRequest, check_at_most, check_logprobs
from app.schemas.usage import Usage
from app.settings import ServeSettings
from engine.errors import context_length_error

DEFAULT_MAX_TOKENS = 16


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    prompt: str | list[Any]
    echo: bool = False
    logprobs: int | None = None

    def check(self, settings: ServeSettings, num_prompts: int) -> None:
        """Raises ApiError for what can be seen without the engine."""
        self.check_common(settings, num_prompts)
        check_logprobs("logprobs", self.logprobs, settings)
        if self.echo and self.logprobs is not None:
            raise ApiError(400, "echo together with logprobs is not supported by this version.", "echo")

    def prompts(self, max_prompts: int, max_model_len: int) -> list[str | list[int]]:
        """One or more prompts, each text or token ids. Raises ApiError, InvalidRequestError."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if not prompt:
            raise ApiError(400, "prompt must not be an empty list.", "prompt")
        # Lengths first: a body may hold millions of them.
        if type(prompt[0]) is int and len(prompt) >= max_model_len:
            raise context_length_error(max_model_len, len(prompt), self.max_tokens or 1)
        if type(prompt[0]) is not int:
            check_at_most("prompt", len(prompt), max_prompts, "--max-prompts", "prompts")
        if all(type(part) is int for part in prompt):
            return [prompt]
        for i, part in enumerate(prompt):
            if not isinstance(part, str) and not (isinstance(part, list) and all(type(id) is int for id in part)):
                raise ApiError(400, f"prompt[{i}] is neither text nor a list of token ids; prompt takes text, a list "
                               "of texts, token ids, or a list of token id lists.", "prompt")
        return prompt


class CompletionLogprobs(msgspec.Struct):
    """The shape from before chat: parallel lists."""

    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str
    stop_reason: int | str | None
    prompt_logprobs: None = None


class CompletionReply(msgspec.Struct, kw_only=True):
    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    service_tier: None = None
    system_fingerprint: None = None
