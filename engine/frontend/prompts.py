"""The forms that a prompt or a conversation may have, and the token ids that a prompt comes to; how long a text may be,
and where long ones are encoded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import index
from typing import Any, ParamSpec, TypedDict, TypeVar

from quire.engine.arguments import is_integer, shown
from quire.engine.errors import InvalidRequestError, context_length_error
from quire.engine.tokenizers.tokenizer import Tokenizer


class PromptDict(TypedDict, total=False):
    prompt: str | None
    prompt_token_ids: list[int]
    multi_modal_data: dict[str, Any] | None
    mm_processor_kwargs: dict[str, Any] | None


Prompt = str | list[int] | PromptDict
P = ParamSpec("P")
T = TypeVar("T")

# A text that hardly has tokens (white space, letters repeated) takes memory for its characters all the same.
CHARS_PER_TOKEN = 8
CHARS_ALWAYS_TAKEN = 256 * 2**10
_BYTES_AROUND_A_PART = 128

# Two, however many cores: the memory of what is being encoded is theirs times that of one. Who leaves the queue was
# never encoded.
_THREADS = ThreadPoolExecutor(2, thread_name_prefix="tokenize")


async def off_the_loop(job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`job`, which encodes or decodes a long text, in a thread of its own, when its turn comes."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, lambda: job(*args, **kwargs))


def check_characters(text: str, most_tokens: int) -> None:
    """Raises InvalidRequestError for a text too long to be looked at, where it may have `most_tokens`."""
    _check_characters(len(text), "", most_tokens)


def check_json(raw: bytes, most_tokens: int) -> None:
    """As `check_characters`, of a text or its parts in JSON: decoding millions of characters takes its time too."""
    if len(raw) > CHARS_ALWAYS_TAKEN:
        num_escapes = raw.count(b"\\u")  # of six bytes, and two may make one character; elsewhere at most four do
        rest = len(raw) - 6 * num_escapes - _BYTES_AROUND_A_PART * (1 + raw.count(b"{"))
        _check_characters(num_escapes // 2 + rest // 4, "at least ", most_tokens)


def _check_characters(num_chars: int, about: str, most_tokens: int) -> None:
    most = max(CHARS_ALWAYS_TAKEN, CHARS_PER_TOKEN * most_tokens)
    if num_chars > most:
        raise InvalidRequestError(f"The prompt has {about}{num_chars} characters; for at most {most_tokens} tokens the "
                                  f"server takes at most {most} characters. Please reduce the length of the prompt.",
                                  "prompt")


def to_token_ids(prompt: Prompt, tokenizer: Tokenizer | None, add_special_tokens: bool = True,
                 max_model_len: int | None = None, max_tokens: int = 1) -> tuple[str | None, list[int]]:
    """The prompt's text, where it came as text or brought one, and its token ids.

    With `max_model_len` a text that cannot fit, with a token behind it unless `max_tokens` is 0, is refused without the
    memory and time that all its tokens would take.

    Raises:
        InvalidRequestError: the prompt has none of the known forms, or is text and there is no tokenizer, or too long.
    """
    if isinstance(prompt, dict):
        unknown = [key for key, value in prompt.items()
                   if key not in ("prompt", "prompt_token_ids") and value is not None]
        if unknown:
            raise InvalidRequestError(f"prompt holds {shown(unknown)}, which this version does not take; it takes "
                                      "'prompt' (text) or 'prompt_token_ids'.", "prompt")
        text: Any = prompt.get("prompt")
        ids = prompt.get("prompt_token_ids")
        if ids is not None:
            if text is not None and not isinstance(text, str):
                raise InvalidRequestError(f"The prompt of token ids must be text, got {shown(text)}.", "prompt")
            return text, _checked_ids(ids)
    elif isinstance(prompt, list):
        return None, _checked_ids(prompt)
    else:
        text = prompt
    if not isinstance(text, str):
        raise InvalidRequestError("prompt must be text, a list of token ids, or a dict with 'prompt' or "
                                  f"'prompt_token_ids'; got {type(text).__name__}.", "prompt")
    if tokenizer is None:
        raise InvalidRequestError("prompt is text, but the engine runs without a tokenizer (skip_tokenizer_init); "
                                  "send a list of token ids.", "prompt")
    if max_model_len is not None:
        check_characters(text, max_model_len)
        too_many = max_model_len + (max_tokens == 0)
        least = tokenizer.counted_tokens(text, too_many)
        if least >= too_many:
            raise context_length_error(max_model_len, least, max_tokens, at_least=True)
    return str(text), tokenizer.encode(text, add_special_tokens)


def _checked_ids(ids: Any) -> list[int]:
    if isinstance(ids, Sequence) and not isinstance(ids, (str, bytes)):
        if set(map(type, ids)) <= {int}:
            return list(ids)
        if all(map(is_integer, ids)):
            return [index(id) for id in ids]
    raise InvalidRequestError(f"prompt_token_ids must be a list that holds only integers, got {shown(ids)}.",
                              "prompt_token_ids")


def to_conversations(messages: Any) -> list[list[dict[str, Any]]]:
    """One conversation, or a list of them, as a list of conversations that a chat template can be given.

    Raises:
        InvalidRequestError: it is neither; the message says where.
    """
    if not isinstance(messages, (list, tuple)):
        raise InvalidRequestError("messages must be a list of messages such as {'role': 'user', 'content': 'Hi'}, or a "
                                  f"list of such lists; got {shown(messages)}.", "messages")
    if all(isinstance(part, (list, tuple)) for part in messages):
        return [_conversation(part, f"messages[{i}]") for i, part in enumerate(messages)]
    return [_conversation(messages, "messages")]


def _conversation(messages: Sequence[Any], where: str) -> list[dict[str, Any]]:
    if not messages:
        raise InvalidRequestError(f"{where} must hold at least one message.", "messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequestError(f"{where}[{i}] must be a dict with 'role' and 'content', got {shown(message)}.",
                                      "messages")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            raise InvalidRequestError(f"{where}[{i}]['role'] must be text, got {shown(role)}.", "messages")
        if not isinstance(content, (str, list)) and not (content is None and message.get("tool_calls")):
            raise InvalidRequestError(f"{where}[{i}]['content'] must be text or a list of text parts, got "
                                      f"{shown(content)}.", "messages")
    return list(messages)
