"""The forms a prompt may have, and the token ids they come to."""

from __future__ import annotations

from typing import Any, TypedDict

from engine.errors import InvalidRequestError
from engine.frontend.tokenizer import Tokenizer


class PromptDict(TypedDict, total=False):
    prompt: str | None
    prompt_token_ids: list[int]


Prompt = str | list[int] | PromptDict


def to_token_ids(prompt: Prompt, tokenizer: Tokenizer | None,
                 add_special_tokens: bool = True) -> tuple[str | None, list[int]]:
    """The prompt's text, where it came as text or brought one, and its token ids.

    Raises:
        InvalidRequestError: the prompt has none of the known forms, or is text and there is no tokenizer.
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
    return text, tokenizer.encode(text, add_special_tokens)


def _checked_ids(ids: list[int]) -> list[int]:
    if not set(map(type, ids)) <= {int}:
        raise InvalidRequestError("prompt_token_ids must hold only integers.", "prompt_token_ids")
    return list(ids)
