"""The token counts at the end of every reply, and in its chunks where they are asked for."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails
    # Where something was thought.
    completion_tokens_details: CompletionTokensDetails | msgspec.UnsetType = msgspec.UNSET


class UsageOfChunks:
    """The field `usage` of a stream's chunks but the last, as JSON to append: the counts so far where each chunk is to
    tell them, null where only the last one is, nothing where none is."""

    def __init__(self, asked: bool, continuous: bool, so_far: Callable[[], Usage]) -> None:
        self._constant = b',"usage":null' if asked else b""
        self._so_far = so_far if continuous else None

    def field(self) -> bytes:
        return self._constant if self._so_far is None else b',"usage":' + msgspec.json.encode(self._so_far())
