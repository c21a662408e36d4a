"""POST /v1/chat/completions: what it takes and what it gives, beyond the fields that all generation shares."""

from __future__ import annotations

from typing import Any

import msgspec

from quire.app.errors import ApiError
from quire.app.schemas.sampling import GenerationRequest, check_at_most, check_logprobs
from quire.app.schemas.usage import Usage
from quire.app.settings import ServeSettings
from quire.engine.frontend.chat_template import RESERVED_VARIABLES

MAX_MESSAGES = 4096
MAX_KWARGS_DEPTH = 16
MAX_KWARGS_BYTES = 64 * 2**10
ROLES = ("system", "developer", "user", "assistant")
_HARMLESS_IN_MESSAGES = frozenset({"refusal", "annotations", "reasoning", "reasoning_content"})
_HARMLESS_IN_PARTS = frozenset({"annotations", "cache_control"})  # a prompt's beginning is cached unasked
_UNSUPPORTED_IN_MESSAGES = frozenset({"tool_calls", "tool_call_id", "function_call", "audio"})


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    echo: bool = False

    def check(self, settings: ServeSettings) -> None:
        """Raises ApiError for what can be seen without the engine."""
        self.check_common(settings)
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true.", "top_logprobs")
        check_logprobs("top_logprobs", self.top_logprobs, settings)
        if self.echo:
            raise ApiError(400, "echo is not supported for chat.", "echo")
        taken = RESERVED_VARIABLES & self.chat_template_kwargs.keys()
        if taken:
            raise ApiError(400, f"chat_template_kwargs may not set {', '.join(sorted(taken))}.",
                           "chat_template_kwargs")
        check_at_most("chat_template_kwargs", _depth(self.chat_template_kwargs), MAX_KWARGS_DEPTH, what="levels")
        check_at_most("chat_template_kwargs", len(msgspec.json.encode(self.chat_template_kwargs)), MAX_KWARGS_BYTES,
                      what="bytes")

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as a chat template takes them. Raises ApiError naming the message at fault."""
        if not self.messages:
            raise ApiError(400, "messages must hold at least one message.", "messages")
        check_at_most("messages", len(self.messages), MAX_MESSAGES, what="messages")
        return [_checked_message(message, f"messages[{i}]") for i, message in enumerate(self.messages)]


def _depth(value: Any) -> int:
    """How many lists and objects lie within each other. Without recursion: it measures what may be deep."""
    depth, level = 0, [value]
    while True:
        level = [inner for item in level if isinstance(item, (dict, list))
                 for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return depth
        depth += 1


def _checked_message(message: dict[str, Any], where: str) -> dict[str, Any]:
    role = message.get("role")
    if role not in ROLES:
        raise ApiError(400, f"{where}.role must be one of {', '.join(ROLES)}; got {str(role)[:50]!r}.",
                       f"{where}.role")
    for name in _UNSUPPORTED_IN_MESSAGES & message.keys():  # first: a message of tool calls may have no content
        if message[name]:
            raise ApiError(400, f"{where}.{name} is not supported by this version.", f"{where}.{name}")
    # Newer OpenAI clients say "developer" for what every open model's template calls "system".
    checked: dict[str, Any] = {"role": "system" if role == "developer" else role,
                               "content": _checked_content(message.get("content"), f"{where}.content")}
    for name, value in message.items():
        if name in ("role", "content") or name in _HARMLESS_IN_MESSAGES or not value:
            continue
        if name != "name" or not isinstance(value, str):
            raise ApiError(400, f"There is no message field {name[:100]!r} of that form.", f"{where}.{name[:100]}")
        checked["name"] = value
    return checked


def _checked_content(content: Any, where: str) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"{where} must be text or a list of text parts.", where)
    parts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise ApiError(400, f"{where}[{i}]: this server takes text only; parts of type {str(kind)[:50]!r} are not "
                           "supported.", f"{where}[{i}]")
        if not isinstance(part.get("text"), str):
            raise ApiError(400, f"{where}[{i}].text must be text.", f"{where}[{i}].text")
        unknown = next((name[:100] for name, value in part.items()
                        if value and name not in ("type", "text") and name not in _HARMLESS_IN_PARTS), None)
        if unknown is not None:
            raise ApiError(400, f"There is no field {unknown!r} of a text part.", f"{where}[{i}].{unknown}")
        parts.append({"type": "text", "text": part["text"]})
    return parts


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ChatLogprob]
    refusal: None = None


class Message(msgspec.Struct):
    role: str
    content: str
    refusal: None = None
    tool_calls: list[Any] = []


class ChatChoice(msgspec.Struct):
    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: int | str | None


class ChatReply(msgspec.Struct, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: None = None
    system_fingerprint: None = None
    prompt_logprobs: None = None
