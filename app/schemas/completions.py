"""POST /v1/completions: what it takes and what it gives, beyond the fields that all generation shares."""

from __future__ import annotations

from typing import Annotated

import msgspec

from quire.app.errors import ApiError
from quire.app.schemas import meanings
from quire.app.schemas.described import about, json_of
from quire.app.schemas.prompt_logprobs import ToldOfPrompt
from quire.app.schemas.prompts import PROMPTS, prompts_of
from quire.app.schemas.sampling import GenerationRequest, check_logprobs, check_max_tokens
from quire.app.schemas.usage import Usage
from quire.app.settings import ServeSettings

DEFAULT_MAX_TOKENS = 16
MAX_ECHO_CHARACTERS = 2**20  # of more than one copy
_CHARACTERS_OF_AN_ID = 4


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    prompt: Annotated[msgspec.Raw, PROMPTS, meanings.PROMPT]  # see `prompts`
    echo: Annotated[bool, about("Whether the reply begins with the prompt.")] = False
    logprobs: Annotated[
        int | bool | None, about("With the tokens' logprobs, and this many alternatives to each.")] = None

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to each token; None where nothing is to be told of tokens."""
        return None if self.logprobs is False else self.logprobs

    @property
    def only_echoes(self) -> bool:
        """Whether nothing but what the prompt is made of is wanted."""
        return self.echo and self.max_tokens == 0

    def check(self, settings: ServeSettings, num_prompts: int) -> None:
        """Raises ApiError for what can be seen without the engine."""
        if self.logprobs is True:
            raise ApiError(400, "logprobs is the number of alternatives to each token here, and true is none; send 1, "
                           "or 0 for the tokens alone.", "logprobs")
        self.check_common(settings, num_prompts)
        if not self.only_echoes:
            check_max_tokens("max_tokens", self.max_tokens, f"{DEFAULT_MAX_TOKENS}, or say how many")
        check_logprobs("logprobs", self.num_logprobs, settings)

    def check_echo(self, prompts: list[str | list[int]]) -> None:
        """Raises ApiError (400) where the reply would hold far more text than the request."""
        n = self.n or 1
        size = n * sum(len(p) if isinstance(p, str) else _CHARACTERS_OF_AN_ID * len(p) for p in prompts)
        if self.echo and size > MAX_ECHO_CHARACTERS and n * len(prompts) > 1:
            raise ApiError(400, f"echo would repeat about {size} characters ({len(prompts)} prompts, n = {n}). "
                           f"At most {MAX_ECHO_CHARACTERS} may be: leave echo out, send fewer prompts or a smaller n.",
                           "echo")

    def prompts(self, max_prompts: int, max_model_len: int) -> list[str | list[int]]:
        """One or more. Raises ApiError, InvalidRequestError."""
        max_tokens = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        return prompts_of("prompt", self.prompt, max_prompts, max_model_len, max_tokens or 1)


class CompletionLogprobs(msgspec.Struct):
    """The shape from before chat: parallel lists."""

    text_offset: list[int]
    token_logprobs: list[float | None]  # null of a prompt's first token, which nothing comes before
    tokens: list[str]
    # Of each token: text to logprob.
    top_logprobs: list[Annotated[msgspec.Raw, json_of(dict[str, float] | None)]]


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str
    stop_reason: int | str | None
    prompt_logprobs: ToldOfPrompt | None = None


class CompletionReply(msgspec.Struct, kw_only=True):
    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[Annotated[msgspec.Raw, json_of(CompletionChoice)]]
    usage: Usage
    service_tier: None = None
    system_fingerprint: None = None
