"""The chunks of a stream as types, for the OpenAPI document and its tests: what is sent thousands of times a second is
written by hand (`quire.app.endpoints`)."""

from __future__ import annotations

from typing import Literal

import msgspec

from quire.app.schemas.chat import ChatLogprobs
from quire.app.schemas.completions import CompletionLogprobs
from quire.app.schemas.usage import Usage


class ChatDelta(msgspec.Struct):
    role: str | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None


class ChatChunk(msgspec.Struct):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChunkChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None


class CompletionChunk(msgspec.Struct):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None
