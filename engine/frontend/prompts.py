"""The forms a prompt may have, and the token ids they come to; how long a text may be, and where long ones are encoded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypedDict, TypeVar

from engine.errors import InvalidRequestError, context_length_error
from engine.frontend.tokenizer import Tokenizer


class PromptDict(TypedDict, total=False):
    prompt: str | None
    prompt_token_ids: list[int]


Prompt = str | list[int] | PromptDict
P = ParamSpec("P")
T = TypeVar("T")

# A text that hardly has tokens (white space, letters repeated) takes memory for its characters all the same.
CHARS_PER_TOKEN = 8
CHARS_ALWAYS_TAKEN = 256 * 2**10

# Two, however many cores: the memory of what is being encoded is theirs times that of one. Who leaves the queue was
# never encoded.
_THREADS = ThreadPoolExecutor(2, thread_name_prefix="tokenize")


async def off_the_loop(job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`job`, which encodes or decodes a long text, in a thread of its own, when its turn comes."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, lambda: job(*args, **kwargs))


def check_characters(text: str, most_tokens: int) -> None:
    """Raises InvalidRequestError for a text too long to be looked at, where it may have `most_tokens`."""
    most = max(CHARS_ALWAYS_TAKEN, CHARS_PER_TOKEN * most_tokens)
    if len(text) > most:
        raise InvalidRequestError(f"The prompt has {len(text)} characters; for at most {most_tokens} tokens the server "
                                  f"takes at most {most} characters. Please reduce the length of the prompt.", "prompt")


def to_token_ids(prompt: Prompt, tokenizer: Tokenizer | None, add_special_tokens: bool = True,
                 max_model_len: int | None = None, max_tokens: int = 1) -> tuple[str | None, list[int]]:
    """The prompt's text, where it came as text or brought one, and its token ids.

    With `max_model_len` a text that cannot fit is refused without the memory and time that all its tokens would take.

    Raises:
        InvalidRequestError: the prompt has none of the known forms, or is text and there is no tokenizer, or too long.
    """
    if isinstance(prompt, dict):
        unknown = set(prompt) - {"prompt", "prompt_token_ids"}
        if unknown:
            raise InvalidRequestError(f"prompt holds {sorted(unknown)}, which this version does not take; it takes "
                                      "'prompt' (text) or 'prompt_token_ids'.", "prompt")
        ids = prompt.get("prompt_token_ids")
        if ids is not None:
            return prompt.get("prompt"), _checked_ids(ids)
        text: Any = prompt.get("prompt")
    elif isinstance(prompt, list):
        return None, _checked_ids(prompt)
    else:
        text = prompt
    if not isinstance(text, str):
        raise InvalidRequestError("prompt must be text, a list of token ids, or a dict with 'prompt' or "
                                  f"'prompt_token_ids'; got {type(text).__name__}.", "prompt")
    if tokenizer is None:
        raise InvalidRequestError("prompt is text, but the engine runs without a tokenizer (skip_tokenizer_init); "
                                  "send prompt_token_ids.", "prompt")
    if max_model_len is not None:
        check_characters(text, max_model_len)
        least = tokenizer.counted_tokens(text, max_model_len)
        if least >= max_model_len:
            raise context_length_error(max_model_len, least, max_tokens, at_least=True)
    return text, tokenizer.encode(text, add_special_tokens)


def _checked_ids(ids: list[int]) -> list[int]:
    if not set(map(type, ids)) <= {int}:
        raise InvalidRequestError("prompt_token_ids must hold only integers.", "prompt_token_ids")
    return list(ids)
