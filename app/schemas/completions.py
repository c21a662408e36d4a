"""POST /v1/completions: what it takes and what it gives, beyond the fields that all generation shares."""

from __future__ import annotations

import re

import msgspec

from quire.app.errors import ApiError
from quire.app.schemas.body import decode_field
from quire.app.schemas.sampling import GenerationRequest, check_at_most, check_logprobs, check_max_tokens
from quire.app.schemas.usage import Usage
from quire.app.settings import ServeSettings
from quire.engine.errors import context_length_error
from quire.engine.frontend.prompts import check_json

DEFAULT_MAX_TOKENS = 16
MAX_ECHO_CHARACTERS = 2**20  # of more than one copy
_CHARACTERS_OF_AN_ID = 4
_MOST_ID_BYTES = 64  # in JSON, white space included
_TOKEN_IDS = re.compile(rb"\[\s*-?\d")  # how a list of them begins
_PROMPT = msgspec.json.Decoder(str | list[msgspec.Raw])
_PART = msgspec.json.Decoder(str | list[int])


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    prompt: msgspec.Raw  # text, a list of texts, token ids, or a list of lists of them: see `prompts`
    echo: bool = False
    logprobs: int | bool | None = None

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
        """One or more prompts, each text or token ids. Raises ApiError, InvalidRequestError.

        Counts before it decodes: a body may hold millions of ids. As many as can be served take 0.1 s all the same,
        prompt by prompt, so a long body is for a thread.
        """
        raw = bytes(self.prompt)
        if _TOKEN_IDS.match(raw) or raw.startswith(b'"'):
            return [self._part(raw, "prompt", max_model_len)]
        if raw.startswith(b"["):
            check_at_most("prompt", _fewest_parts(raw), max_prompts, "--max-prompts", "prompts")
        prompt = decode_field("prompt", _PROMPT, raw)
        if isinstance(prompt, str):
            return [prompt]
        if not prompt:
            raise ApiError(400, "prompt must not be an empty list.", "prompt")
        check_at_most("prompt", len(prompt), max_prompts, "--max-prompts", "prompts")
        return [self._part(bytes(part), f"prompt[{i}]", max_model_len) for i, part in enumerate(prompt)]

    def _part(self, raw: bytes, where: str, max_model_len: int) -> str | list[int]:
        if _TOKEN_IDS.match(raw):
            num_tokens = raw.count(b",") + 1
            if num_tokens >= max_model_len:
                max_tokens = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
                raise context_length_error(max_model_len, num_tokens, max_tokens)
            if len(raw) > _MOST_ID_BYTES * (num_tokens + 1):
                raise ApiError(400, f"{where} holds {num_tokens} token ids in {len(raw)} bytes; the server takes at "
                               f"most {_MOST_ID_BYTES} for each.", where)
        elif raw.startswith(b'"'):
            check_json(raw, max_model_len)
        try:
            return decode_field(where, _PART, raw)
        except ApiError as error:
            raise ApiError(400, f"{error.message} prompt takes text, a list of texts, token ids, or a list of token id "
                           "lists.", "prompt") from None


def _fewest_parts(raw: bytes) -> int:
    """How many texts or lists a list holds at least. Only texts with backslashes before quotes, and lists among texts,
    make it more."""
    num_quotes = raw.count(b'"')
    return (num_quotes - raw.count(b'\\"')) // 2 if num_quotes else raw.count(b"[") - 1


class CompletionLogprobs(msgspec.Struct):
    """The shape from before chat: parallel lists."""

    text_offset: list[int]
    token_logprobs: list[float | None]  # null of a prompt's first token, which nothing comes before
    tokens: list[str]
    top_logprobs: list[msgspec.Raw]  # of each token an object: text to logprob


class PromptLogprob(msgspec.Struct):
    logprob: float
    rank: int
    decoded_token: str


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str
    stop_reason: int | str | None
    prompt_logprobs: list[msgspec.Raw] | None = None  # of each token an object: id to a PromptLogprob


class CompletionReply(msgspec.Struct, kw_only=True):
    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[msgspec.Raw]  # of CompletionChoice
    usage: Usage
    service_tier: None = None
    system_fingerprint: None = None
