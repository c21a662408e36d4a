"""POST /v1/chat/completions: what it takes and what it gives, beyond the fields that all generation shares."""

from __future__ import annotations

from typing import Any

import msgspec

from quire.app.errors import ApiError
from quire.app.schemas.sampling import GenerationRequest, check_at_most, check_logprobs, check_max_tokens
from quire.app.schemas.unknown import OF_CLIENTS_IN_MESSAGES, UnknownFields
from quire.app.schemas.usage import Usage
from quire.app.settings import ServeSettings
from quire.engine.frontend.chat_template import RESERVED_VARIABLES

MAX_MESSAGES = 4096
MAX_KWARGS_DEPTH = 16
MAX_KWARGS_BYTES = 64 * 2**10
ROLES = ("system", "developer", "user", "assistant")
_HARMLESS_IN_MESSAGES = frozenset({"annotations", "reasoning", "reasoning_content"})
_HARMLESS_IN_PARTS = frozenset({"annotations", "cache_control"})  # a prompt's beginning is cached unasked
_UNSUPPORTED_IN_MESSAGES = frozenset({"tool_calls", "tool_call_id", "function_call", "audio"})
_FIELDS_OF_MESSAGES = ("role", "content", "name", "refusal")


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    echo: bool = False

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def check(self, settings: ServeSettings) -> None:
        """Raises ApiError for what can be seen without the engine."""
        self.check_common(settings)
        name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        check_max_tokens(name, self.most_tokens, "as many as the context has room for")
        if self.top_logprobs and not self.logprobs:
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

    def conversation(self, unknown: UnknownFields) -> list[dict[str, Any]]:
        """The messages as a chat template takes them. Raises ApiError naming the message at fault."""
        if not self.messages:
            raise ApiError(400, "messages must hold at least one message.", "messages")
        check_at_most("messages", len(self.messages), MAX_MESSAGES, what="messages")
        return [_checked_message(message, f"messages[{i}]", unknown) for i, message in enumerate(self.messages)]


def _depth(value: Any) -> int:
    """How many lists and objects lie within each other. Without recursion: it measures what may be deep."""
    depth, level = 0, [value]
    while True:
        level = [inner for item in level if isinstance(item, (dict, list))
                 for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return depth
        depth += 1


def _checked_message(message: dict[str, Any], where: str, unknown: UnknownFields) -> dict[str, Any]:
    role = message.get("role")
    if role in ("tool", "function"):
        raise ApiError(400, f"{where}.role is {role!r}, and tool calls are not supported by this version.",
                       f"{where}.role")
    if role not in ROLES:
        raise ApiError(400, f"{where}.role must be one of {', '.join(ROLES)}; got {str(role)[:50]!r}.",
                       f"{where}.role")
    for name in _UNSUPPORTED_IN_MESSAGES & message.keys():  # first: a message of tool calls may have no content
        if message[name]:
            raise ApiError(400, f"{where}.{name} is not supported by this version; leave it out, and say in "
                           f"{where}.content what the model is to know of it.", f"{where}.{name}")
    content = message.get("content")
    if role == "assistant" and not content:
        content = _refusal_text(message.get("refusal"), f"{where}.refusal")
    # Newer OpenAI clients say "developer" for what every open model's template calls "system".
    checked: dict[str, Any] = {"role": "system" if role == "developer" else role,
                               "content": _checked_content(content, role, f"{where}.content", unknown)}
    for name, value in message.items():
        if name in ("role", "content", "refusal") or name in _HARMLESS_IN_MESSAGES or not value:
            continue
        if name != "name":
            unknown.meet(name, f"{where}.{name}", _FIELDS_OF_MESSAGES, OF_CLIENTS_IN_MESSAGES)
        elif isinstance(value, str):
            checked["name"] = value
        else:
            raise ApiError(400, f"{where}.name must be text.", f"{where}.name")
    return checked


def _refusal_text(refusal: Any, where: str) -> str:
    """What the assistant said where it said nothing else; empty where it did not even refuse."""
    if refusal is not None and not isinstance(refusal, str):
        raise ApiError(400, f"{where} must be text.", where)
    return refusal or ""


def _checked_content(content: Any, role: str, where: str, unknown: UnknownFields) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"{where} must be text or a list of text parts.", where)
    return [_checked_part(part, role, f"{where}[{i}]", unknown) for i, part in enumerate(content)]


def _checked_part(part: Any, role: str, where: str, unknown: UnknownFields) -> dict[str, str]:
    """What the assistant refused with is text to a template."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text" and not (kind == "refusal" and role == "assistant"):
        raise ApiError(400, f"{where}: this server takes text only; parts of type {str(kind)[:50]!r} are not "
                       "supported.", where)
    if not isinstance(part.get(kind), str):
        raise ApiError(400, f"{where}.{kind} must be text.", f"{where}.{kind}")
    for name, value in part.items():
        if value and name not in ("type", kind) and name not in _HARMLESS_IN_PARTS:
            unknown.meet(name, f"{where}.{name}", ("type", kind))
    return {"type": "text", "text": part[kind]}


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
