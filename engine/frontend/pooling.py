"""The front end's side of an embedding: checks that need the model's facts, the prompt's tokens, and from the engine's
vector what the caller asked for.

Refuses to know the wire and HTTP. Called by `llm` and `async_llm`.
"""

from __future__ import annotations

import math
from array import array

from quire.engine.errors import InvalidRequestError, context_length_error
from quire.engine.frontend.generation import SampleUpdate
from quire.engine.frontend.prompts import Prompt, check_characters, to_token_ids
from quire.engine.messages import Delta, Sampling, TokenLogprobs
from quire.engine.model_config import Pooling
from quire.engine.pooling_params import PoolingParams
from quire.engine.tokenizers.tokenizer import Tokenizer

# A long text's beginning is encoded first, and more only if that is too short; near a cut its tokens are others.
_PIECE_CHARS = 64 * 2**10
_TOKENS_OF_A_CUT = 1024


def pooling_numbers(params: PoolingParams, pooling: Pooling, hidden_size: int) -> Sampling:
    """What crosses to the core. Raises InvalidRequestError for a length that the model's vectors cannot have."""
    wanted = params.dimensions
    if wanted is not None and wanted != hidden_size:
        if not pooling.can_be_cut:
            raise InvalidRequestError(
                f"dimensions must be {hidden_size} or left out, got {wanted}: this model's config.json does not say "
                "that its vectors can be shortened (is_matryoshka or matryoshka_dimensions).", "dimensions")
        if pooling.lengths and wanted not in pooling.lengths:
            lengths = ", ".join(map(str, pooling.lengths))
            raise InvalidRequestError(f"dimensions must be one of {lengths}, got {wanted}.", "dimensions")
        if wanted > hidden_size:
            raise InvalidRequestError(f"dimensions must be at most {hidden_size}, got {wanted}.", "dimensions")
    return Sampling(temperature=0.0, max_tokens=0, pooling=pooling.kind)


def to_pooled_token_ids(prompt: Prompt, params: PoolingParams, tokenizer: Tokenizer | None, max_model_len: int,
                        add_special_tokens: bool = True) -> tuple[str | None, list[int]]:
    """As `to_token_ids`; cut as `params` say. Of a text that is cut, the special tokens around it stay.

    Raises:
        InvalidRequestError: as `to_token_ids`, or the prompt is to be cut to more than the model takes.
    """
    most = params.truncate_prompt_tokens
    if most is None:
        text, ids = to_token_ids(prompt, tokenizer, add_special_tokens, max_model_len, 0)
        if len(ids) > max_model_len:
            raise context_length_error(max_model_len, len(ids), 0)
        return text, ids
    if most > max_model_len:
        raise InvalidRequestError(f"truncate_prompt_tokens must be at most {max_model_len}, which is what the model "
                                  f"takes, got {most}.", "truncate_prompt_tokens")
    most = max_model_len if most == -1 else most
    keeps_end = params.truncation_side == "left"
    whole = prompt.get("prompt") if isinstance(prompt, dict) and prompt.get("prompt_token_ids") is None else prompt
    if isinstance(whole, str) and tokenizer is not None:
        check_characters(whole, max_model_len)
        return whole, _cut_text(whole, most, tokenizer, add_special_tokens, keeps_end=keeps_end)
    told, ids = to_token_ids(prompt, tokenizer)
    return told, _cut(ids, most, 0, 0, keeps_end=keeps_end)


def _cut_text(text: str, most: int, tokenizer: Tokenizer, add_special_tokens: bool, *, keeps_end: bool) -> list[int]:
    size = _PIECE_CHARS
    while True:
        ids = tokenizer.encode(text[-size:] if keeps_end else text[:size], add_special_tokens)
        if size >= len(text) or len(ids) >= most + _TOKENS_OF_A_CUT:
            break
        size *= 2
    around = tokenizer.encode("", add_special_tokens)
    num_before = next((i for i, (a, b) in enumerate(zip(around, ids)) if a != b), min(len(around), len(ids)))
    rest = list(reversed(around[num_before:]))
    num_behind = next((i for i, (a, b) in enumerate(zip(rest, reversed(ids))) if a != b), min(len(rest), len(ids)))
    return _cut(ids, most, num_before, num_behind, keeps_end=keeps_end)


def _cut(ids: list[int], most: int, num_before: int, num_behind: int, *, keeps_end: bool) -> list[int]:
    """At most so many of `ids`; the first and last ones that are the tokenizer's own stay."""
    room = most - num_before - num_behind
    if len(ids) <= most or room < 0:
        return ids[:most]
    inner = ids[num_before:len(ids) - num_behind]
    return [*ids[:num_before], *(inner[len(inner) - room:] if keeps_end else inner[:room]),
            *ids[len(ids) - num_behind:]]


class Embedding:
    """One request for a vector, with the face of a `Generation` of one sample; nothing of it outlives an engine."""

    prompt_logprobs: list[TokenLogprobs | None] | None = None

    def __init__(self, params: PoolingParams, pooling: Pooling) -> None:
        self._dimensions = params.dimensions
        self._normalizes = pooling.normalize if params.normalizes is None else params.normalizes
        self._reason: str | None = None
        self.vector = array("f")  # whole before the only update

    def push(self, index: int, delta: Delta) -> SampleUpdate | None:
        """The only update; None after it."""
        if self._reason is not None:
            return None
        self._reason = delta.finish_reason
        self.vector.frombytes(delta.pooled)
        self._shape()
        return SampleUpdate(0, "", [], [], self._reason, None,
                            delta.num_cached_tokens if delta.num_cached_tokens >= 0 else None)

    def token_ids(self, index: int) -> list[int]:
        return []

    def sample_finished(self, index: int) -> bool:
        return self.finished

    @property
    def finished(self) -> bool:
        return self._reason is not None

    def _shape(self) -> None:
        """Cut first, then normalised."""
        if self._dimensions is not None:
            del self.vector[self._dimensions:]
        if self._normalizes and (length := math.hypot(*self.vector)):
            self.vector = array("f", [value / length for value in self.vector])
