"""POST /v1/chat/completions: what it takes and what it gives, beyond the fields that all generation shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import msgspec

from quire.app.errors import ApiError
from quire.app.schemas import meanings
from quire.app.schemas.body import decode_field
from quire.app.schemas.described import about, json_of
from quire.app.schemas.media import SentImages, is_image
from quire.app.schemas.message_form import ConversationMessage
from quire.app.schemas.prompt_logprobs import ToldOfPrompt
from quire.app.schemas.raw import NULL, begins, says_something, shown_json, text_of
from quire.app.schemas.sampling import GenerationRequest, check_at_most, check_logprobs, check_max_tokens
from quire.app.schemas.template import check_effort, check_template_kwargs, template_variables
from quire.app.schemas.tool_calls import SentCall, ToolCall
from quire.app.schemas.unknown import OF_CLIENTS_IN_MESSAGES, OfOthers
from quire.app.schemas.usage import Usage
from quire.app.settings import ServeSettings
from quire.engine.arguments import shown
from quire.engine.frontend.prompts import check_json
from quire.engine.image_options import checked_options

MAX_MESSAGES = 4096
MAX_PARTS = 4096  # of the content of all messages together
MAX_THINKING_TOKENS = 1_000_000
ROLES = ("system", "developer", "user", "assistant", "tool")
_HARMLESS_IN_MESSAGES = frozenset({"annotations"})
_HARMLESS_IN_PARTS = frozenset({"annotations", "cache_control"})  # a prompt's beginning is cached unasked
_UNSUPPORTED_IN_MESSAGES = frozenset({"function_call", "audio"})
_FIELDS_OF_MESSAGES = ("role", "content", "name", "refusal", "tool_calls", "tool_call_id", "reasoning",
                       "reasoning_content")
_READ = frozenset({"role", "content", "refusal"})
_READ_OF = {"assistant": _READ | {"tool_calls", "reasoning", "reasoning_content"}, "tool": _READ | {"tool_call_id"}}
_TEXT = msgspec.json.Decoder(str)
_PARTS = msgspec.json.Decoder(list[msgspec.Raw])
_PART = msgspec.json.Decoder(dict[str, msgspec.Raw])
_IMAGE = msgspec.Raw(b'"image_url"')
_NO_TEXT = msgspec.Raw(b'""')

_CALLS = msgspec.json.Decoder(list[SentCall])
# In JSON but for their names: a message may hold what nobody reads, and that is passed over without being decoded.
RawMessages = Annotated[list[dict[str, msgspec.Raw]], json_of(list[ConversationMessage])]


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    OF_OTHERS: ClassVar[dict[str, OfOthers]] = {"echo": OfOthers("a reply never repeats the conversation", False)}

    messages: Annotated[RawMessages, about("The conversation so far, the last message being what is to be answered.")]
    max_completion_tokens: Annotated[int | None, meanings.MOST_TOKENS] = None
    logprobs: Annotated[bool, about("Whether the reply tells its tokens' logprobs.")] = False
    top_logprobs: Annotated[int | None, about("With `logprobs`: this many alternatives to each token.")] = None
    add_generation_prompt: Annotated[
        bool, about("Whether the chat template begins the assistant's message, which is the reply.")] = True
    continue_final_message: Annotated[
        bool, about("Whether the reply goes on where the last message, the assistant's, ends; with "
                    "`add_generation_prompt: false`.")] = False
    chat_template_kwargs: Annotated[dict[str, Any], meanings.TEMPLATE_KWARGS] = msgspec.field(default_factory=dict)
    tools: Annotated[list[dict[str, Any]] | None, about("Functions that the model may call.")] = None
    tool_choice: Annotated[
        str | dict[str, Any] | None,
        about("`auto`, `none`, `required`, or one function by its name. Calls that must be fit the function's schema.")
    ] = None
    parallel_tool_calls: Annotated[bool, meanings.PARALLEL_CALLS] = True
    include_reasoning: Annotated[bool, meanings.INCLUDE_REASONING] = True
    reasoning_effort: Annotated[
        str | None, about("How much the model thinks, where its template knows that; `none`: not at all.")] = None
    thinking_token_budget: Annotated[int | None, about("The most tokens of the thinking; -1: no limit.")] = None
    mm_processor_kwargs: Annotated[dict[str, Any] | None, meanings.PROCESSOR_KWARGS] = None

    @property
    def thinking_budget(self) -> int | None:
        """The most tokens of a reply's thinking; None: no limit."""
        return None if self.thinking_token_budget == -1 else self.thinking_token_budget

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def most_tokens_field(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def template_variables(self) -> dict[str, Any]:
        """What the chat template gets beside the messages; chat_template_kwargs go before."""
        return template_variables(self.chat_template_kwargs, self.reasoning_effort)

    @property
    def weight(self) -> int:
        """How long it takes to check and render the messages: in bytes of their JSON, names at 20 each."""
        return sum(20 + len(value) for message in self.messages for value in message.values())

    def check(self, settings: ServeSettings) -> None:
        """Raises ApiError for what can be seen without the engine."""
        self.check_common(settings)
        check_max_tokens(self.most_tokens_field, self.most_tokens, "as many as the context has room for")
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true.", "top_logprobs")
        check_logprobs("top_logprobs", self.top_logprobs, settings)
        check_effort("reasoning_effort", self.reasoning_effort)
        check_template_kwargs(self.chat_template_kwargs)
        checked_options(self.mm_processor_kwargs)
        if (budget := self.thinking_token_budget) is not None and not -1 <= budget <= MAX_THINKING_TOKENS:
            raise ApiError(400, "thinking_token_budget must be the most tokens of the thinking, from 0 to "
                           f"{MAX_THINKING_TOKENS}, or -1 for no limit; got {shown(budget)}.", "thinking_token_budget")

    def conversation(self, images: SentImages, max_model_len: int) -> list[dict[str, Any]]:
        """The messages as a chat template takes them; `images` gets what they hold.

        Raises:
            ApiError: names the message at fault.
            InvalidRequestError: one is longer than any prompt.
        """
        if not self.messages:
            raise ApiError(400, "messages must hold at least one message.", "messages")
        check_at_most("messages", len(self.messages), MAX_MESSAGES, what="messages")
        reader = _Reader(images, max_model_len)
        conversation = [reader.message(message, f"messages[{i}]") for i, message in enumerate(self.messages)]
        num_parts = sum(len(message["content"]) for message in conversation if isinstance(message["content"], list))
        check_at_most("messages", num_parts, MAX_PARTS, what="content parts in all")
        return conversation


@dataclass(frozen=True)
class _Reader:
    """Of the messages of one request."""

    images: SentImages
    max_model_len: int

    def message(self, message: dict[str, msgspec.Raw], where: str) -> dict[str, Any]:
        role = text_of(message.get("role"), f"{where}.role")
        if role == "function":
            raise ApiError(400, f"{where}.role is 'function', which OpenAI has replaced; send the role 'tool'.",
                           f"{where}.role")
        if role not in ROLES:
            raise ApiError(400, f"{where}.role must be one of {', '.join(ROLES)}; got "
                           f"{shown_json(message.get('role'))}.", f"{where}.role")
        for name in _UNSUPPORTED_IN_MESSAGES & message.keys():  # first: a message of tool calls may have no content
            if says_something(message[name]):
                raise ApiError(400, f"{where}.{name} is not supported by this version; leave it out, and say in "
                               f"{where}.content what the model is to know of it.", f"{where}.{name}")
        content = message.get("content")
        if role == "assistant" and not says_something(content):
            content = _refusal(message.get("refusal"), f"{where}.refusal")
        # Newer OpenAI clients say "developer" for what every open model's template calls "system".
        checked: dict[str, Any] = {"role": "system" if role == "developer" else role,
                                   "content": self._content(content, role, f"{where}.content")}
        if role == "tool" and isinstance(parts := checked["content"], list):
            checked["content"] = "\n".join(part["text"] for part in parts)
        checked |= _of_tools(message, role, where) if role in ("assistant", "tool") else {}
        for name, value in message.items():
            if name in _READ_OF.get(role, _READ) or name in _HARMLESS_IN_MESSAGES or not says_something(value):
                continue
            if name != "name":
                self.images.unknown.meet(name, f"{where}.{name}", _FIELDS_OF_MESSAGES, OF_CLIENTS_IN_MESSAGES)
            elif (text := text_of(value, f"{where}.name")) is not None:
                checked["name"] = text
            else:
                raise ApiError(400, f"{where}.name must be text.", f"{where}.name")
        return checked

    def _content(self, content: msgspec.Raw | None, role: str, where: str) -> str | list[dict[str, str]]:
        text = self._text(content, where)
        if text is not None:
            return text
        if content is None or not begins(content, b"["):
            raise ApiError(400, f"{where} must be text or a list of {self._kinds(role)} parts.", where)
        raw_parts = decode_field(where, _PARTS, content)
        check_at_most(where, len(raw_parts), MAX_PARTS, what="parts")
        parts = [decode_field(f"{where}[{i}]", _PART, raw) if begins(raw, b"{") else {}
                 for i, raw in enumerate(raw_parts)]
        check_json(b"".join(raw for part in parts if not is_image(part, _IMAGE) for raw in part.values()),
                   self.max_model_len)
        return [self._part(part, role, f"{where}[{i}]") for i, part in enumerate(parts)]

    def _text(self, content: msgspec.Raw | None, where: str) -> str | None:
        if content is not None and begins(content, b'"'):
            check_json(bytes(content), self.max_model_len)
        return text_of(content, where)

    def _kinds(self, role: str) -> str:
        return "text and image" if self.images.taken and role == "user" else "text"

    def _part(self, part: dict[str, msgspec.Raw], role: str, where: str) -> dict[str, str]:
        """What the assistant refused with is text to a template."""
        kind = text_of(part.get("type"), f"{where}.type")
        if kind == "image_url" or (kind is None and "image_url" in part):  # clients may leave the type out
            self.images.check_taken(where, "image_url")
            if role != "user":
                raise ApiError(400, f"{where}: images stand in messages of the user's; this is one of the {role}'s.",
                               where)
            return self.images.take_image_url(part, where)
        if kind != "text" and not (kind == "refusal" and role == "assistant"):
            raise ApiError(400, f"{where}: this model takes {self.images.kinds}; parts of type "
                           f"{shown_json(part.get('type'))} are not supported.", where)
        text = text_of(part.get(kind), f"{where}.{kind}")
        if text is None:
            raise ApiError(400, f"{where}.{kind} must be text.", f"{where}.{kind}")
        for name, value in part.items():
            if name not in ("type", kind) and name not in _HARMLESS_IN_PARTS and says_something(value):
                self.images.unknown.meet(name, f"{where}.{name}", ("type", kind))
        return {"type": "text", "text": text}


def _of_tools(message: dict[str, msgspec.Raw], role: str, where: str) -> dict[str, Any]:
    """What a message tells of calls and of thinking."""
    if role == "tool":
        id = message.get("tool_call_id", NULL)
        return {} if id == NULL else {"tool_call_id": decode_field(f"{where}.tool_call_id", _TEXT, id)}
    found: dict[str, Any] = {}
    calls = message.get("tool_calls")
    if calls is not None and says_something(calls):
        found["tool_calls"] = [call.as_templates_take_it()
                               for call in decode_field(f"{where}.tool_calls", _CALLS, calls)]
    thought = next((value for name in ("reasoning", "reasoning_content")
                    if (value := message.get(name)) is not None and value != NULL), None)
    if thought is not None:
        text = decode_field(f"{where}.reasoning", _TEXT, thought)
        found |= {"reasoning": text, "reasoning_content": text}
    return found


def _refusal(refusal: msgspec.Raw | None, where: str) -> msgspec.Raw:
    """What the assistant said where it said nothing else; empty where it did not even refuse."""
    if refusal is None or refusal == NULL:
        return _NO_TEXT
    if not begins(refusal, b'"'):
        raise ApiError(400, f"{where} must be text.", where)
    return refusal


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
    content: list[Annotated[msgspec.Raw, json_of(ChatLogprob)]]
    refusal: None = None


class Message(msgspec.Struct):
    role: str
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] = []
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET  # its older name


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
    choices: list[Annotated[msgspec.Raw, json_of(ChatChoice)]]
    usage: Usage
    service_tier: None = None
    system_fingerprint: None = None
    prompt_logprobs: ToldOfPrompt | None = None
