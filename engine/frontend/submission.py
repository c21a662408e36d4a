"""From what a caller asked to what crosses border 1: token ids, numbers, seeds. Checks that need no engine are here."""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Collection, Iterable

from quire.engine.arguments import shown
from quire.engine.errors import ContextLengthError, InvalidRequestError, context_length_error
from quire.engine.frontend.prompts import Prompt
from quire.engine.messages import Beams, SampleSpec, Sampling
from quire.engine.sampling_params import SamplingParams
from quire.engine.tokenizers.tokenizer import Tokenizer

MAX_BAD_WORDS = 128  # token sequences
MAX_BAD_WORD_TOKENS = 4096
_MASK63 = 2**63 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def check_prompt(prompt_token_ids: list[int], vocab_size: int) -> None:
    """Raises InvalidRequestError for an empty prompt or an id outside the vocabulary."""
    if not prompt_token_ids:
        raise InvalidRequestError("The prompt is empty: it must hold at least one token.", "prompt")
    low, high = min(prompt_token_ids), max(prompt_token_ids)
    if low < 0 or high >= vocab_size:
        raise InvalidRequestError(f"prompt holds token id {shown(low if low < 0 else high)}; this model's ids are 0 to "
                                  f"{vocab_size - 1}.", "prompt")


def check_length(prompt: Prompt, max_tokens: int, tokenizer: Tokenizer | None, max_model_len: int) -> None:
    """Raises InvalidRequestError for a prompt that is seen to be too long without tokenizing it; with `max_tokens` 0,
    nothing is to follow it."""
    given = (prompt.get("prompt_token_ids") or prompt.get("prompt")) if isinstance(prompt, dict) else prompt
    num_tokens = len(given) if isinstance(given, list) else 0
    if isinstance(given, str) and tokenizer is not None and len(given) > max_model_len:
        num_tokens = tokenizer.fewest_tokens(given)
    if num_tokens >= max_model_len + (max_tokens == 0):
        raise context_length_error(max_model_len, num_tokens, max_tokens, at_least=isinstance(given, str))


def numbers(params: SamplingParams, num_prompt: int, *, max_model_len: int, max_logprobs: int, vocab_size: int,
            eos_token_ids: Iterable[int], clamp: bool, tokenizer: Tokenizer | None = None,
            grammar: str = "") -> Sampling:
    """The numbers of `params` for a prompt of `num_prompt` tokens.

    `grammar` is what `params.structured_outputs` became. `clamp` shortens max_tokens to what the context leaves, as the
    Python API does; over HTTP it is an error instead.

    Raises:
        InvalidRequestError: prompt and output do not fit the context, or too many logprobs, or unknown token ids.
    """
    room = max_model_len - num_prompt
    wanted = room if params.max_tokens is None else params.max_tokens
    if room < 1 or (wanted > room and not clamp):
        raise context_length_error(max_model_len, num_prompt, max(wanted, 1))
    if params.max_tokens is None and params.min_tokens > room:
        raise ContextLengthError(max_model_len, num_prompt, params.min_tokens, field="min_tokens")
    most = vocab_size if max_logprobs < 0 else min(max_logprobs, vocab_size)
    for token in params.stop_token_ids or []:
        if not 0 <= token < 2**31:
            raise InvalidRequestError(f"stop_token_ids holds {shown(token)}, which is no token id.", "stop_token_ids")
    stops = dict.fromkeys(params.stop_token_ids or [])
    if not params.ignore_eos or grammar:  # a text that is complete has nothing else left to say
        stops.update(dict.fromkeys(eos_token_ids))
    greedy = params.greedy
    max_tokens = min(wanted, room)
    return Sampling(
        temperature=0.0 if greedy else params.temperature,
        top_p=1.0 if greedy else params.top_p,
        top_k=0 if greedy or params.top_k >= vocab_size else params.top_k,
        min_p=0.0 if greedy else params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        max_tokens=max_tokens,
        min_tokens=min(params.min_tokens, max_tokens),
        # Ids beyond the vocabulary can never be sampled; the device must not index with them.
        stop_token_ids=tuple(token for token in stops if token < vocab_size),
        logprobs=_alternatives("logprobs", "sample", params.logprobs, most, vocab_size),
        prompt_logprobs=_alternatives("prompt_logprobs", "prompt", params.prompt_logprobs, most, vocab_size),
        allowed_token_ids=_packed("allowed_token_ids", params.allowed_token_ids or (), vocab_size),
        grammar=grammar,
        bad_words=_bad_words(params.bad_words or [], vocab_size, tokenizer),
        logit_bias_ids=_packed("logit_bias", params.logit_bias or (), vocab_size),
        logit_biases=array("f", (params.logit_bias or {}).values()).tobytes(),
        beams=_beams(params, len(stops), vocab_size) if params.use_beam_search else None,
    )


def _beams(params: SamplingParams, num_stops: int, vocab_size: int) -> Beams:
    width = params.best_of or params.n
    return Beams(width, min(width + num_stops, vocab_size), params.length_penalty,
                 "never" if params.early_stopping == "never" else bool(params.early_stopping),
                 bool(params.length_counts_prompt))


def _alternatives(name: str, what: str, wanted: int | None, most: int, vocab_size: int) -> int:
    """-1 where none are wanted; of a caller, -1 asks for all."""
    if wanted is None:
        return -1
    count = vocab_size if wanted == -1 else wanted
    if count > most:
        raise InvalidRequestError(f"Requested {what} logprobs of {count}, which is greater than max allowed: {most}",
                                  name)
    return count


def _packed(name: str, token_ids: Collection[int], vocab_size: int) -> bytes:
    """int32 each."""
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        wrong = next(token for token in token_ids if not 0 <= token < vocab_size)
        raise InvalidRequestError(f"{name} holds token id {shown(wrong)}; this model's ids are 0 to {vocab_size - 1}.",
                                  name)
    return array("i", token_ids).tobytes()


def _bad_words(words: list[str], vocab_size: int, tokenizer: Tokenizer | None) -> tuple[tuple[int, ...], ...]:
    """Each word's tokens as it stands at the beginning of a text, and behind a space, where they differ."""
    if not words:
        return ()
    if tokenizer is None:
        raise InvalidRequestError("bad_words need a tokenizer, and this engine has none (skip_tokenizer_init).",
                                  "bad_words")
    texts = [prefix + word.lstrip() for word in words for prefix in ("", " ")]
    found = dict.fromkeys(map(tuple, tokenizer.encode_batch(texts, add_special_tokens=False)))
    sequences = tuple(ids for ids in found if ids and max(ids) < vocab_size)
    if len(sequences) > MAX_BAD_WORDS or sum(map(len, sequences)) > MAX_BAD_WORD_TOKENS:
        raise InvalidRequestError(
            f"bad_words make {len(sequences)} sequences of {sum(map(len, sequences))} tokens in all; at most "
            f"{MAX_BAD_WORDS} of {MAX_BAD_WORD_TOKENS} are taken.", "bad_words")
    return sequences


def samples(params: SamplingParams, ids: Iterable[int], fallback_seed: int | None = None) -> list[SampleSpec]:
    """One SampleSpec for each of the request's n samples, each with a seed of its own."""
    seed = params.seed
    if seed is None:
        seed = secrets.randbits(63) if fallback_seed is None else fallback_seed
    return [SampleSpec(id, (seed + index * _GOLDEN) & _MASK63) for index, id in enumerate(ids)]
