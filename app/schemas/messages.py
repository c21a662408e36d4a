"""POST /v1/messages and /v1/messages/count_tokens, of Anthropic's API: what they take and what they give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from quire.app.errors import ApiError
from quire.app.schemas import meanings
from quire.app.schemas.blocks import conversation_of
from quire.app.schemas.chat import ChatRequest, RawMessages
from quire.app.schemas.described import about, json_of
from quire.app.schemas.media import SentImages
from quire.app.schemas.raw import NULL
from quire.app.schemas.template import check_effort
from quire.app.schemas.tools import ToolChoice, checked_choice
from quire.app.schemas.unknown import UnknownFields
from quire.engine.arguments import shown
from quire.engine.structured_outputs import StructuredOutputsParams

LEAST_BUDGET = 1024  # tokens to think with
# Whether the template is told to have the model think.
_THINKS = {"enabled": True, "adaptive": True, "between_tools": True, "disabled": False}
_DISPLAYS = ("summarized", "omitted")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}  # to OpenAI's
_TOOL_FIELDS = ("name", "description", "input_schema", "strict", "type")
# How tools are loaded, called and shown by servers that do so; here all are in the prompt.
_HARMLESS_IN_TOOLS = frozenset({"cache_control", "defer_loading", "eager_input_streaming", "allowed_callers",
                                "input_examples"})
_FORM = "output_config.format"


@dataclass(frozen=True, slots=True)
class ShownThoughts:
    """What of the thoughts a reply has: blocks, or nothing; and in the blocks text, or nothing."""

    blocks: bool = True
    text: bool = True


class ThinkingConfig(msgspec.Struct, frozen=True):
    type: str
    budget_tokens: int | None = None
    display: str | None = None


class OutputConfig(msgspec.Struct, frozen=True):
    effort: str | None = None
    format: dict[str, Any] | None = None


class SentChoice(msgspec.Struct, frozen=True):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


def _null() -> msgspec.Raw:
    return NULL


class CountRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that are part of the prompt, or may be sent with them."""

    messages: Annotated[
        RawMessages, about("The conversation so far; one that ends with the assistant's is gone on with.")]
    model: Annotated[str | None, meanings.MODEL] = None
    system: Annotated[
        msgspec.Raw, json_of(str | list[dict[str, Any]]), about("The system message: a text, or blocks of text.")
    ] = msgspec.field(default_factory=_null)
    tools: Annotated[
        list[dict[str, Any]] | None, about("What the model may call: `name`, `description`, `input_schema`.")] = None
    tool_choice: Annotated[
        SentChoice | None, about("`auto`, `any`, `tool` with a name, or `none`. Calls that must be fit their schema.")
    ] = None
    thinking: Annotated[
        ThinkingConfig | None, about("Whether the model thinks, and at most how many tokens of it.")] = None
    output_config: Annotated[
        OutputConfig | None, about("`format`: JSON by a schema; `effort`: how much the model thinks.")] = None
    output_format: Annotated[dict[str, Any] | None, about("Older name of `output_config.format`.")] = None
    chat_template_kwargs: Annotated[dict[str, Any], meanings.TEMPLATE_KWARGS] = msgspec.field(default_factory=dict)
    context_management: Annotated[
        msgspec.Raw, json_of(Any), about("Without effect: nothing of a conversation is left out here.")
    ] = msgspec.field(default_factory=_null)

    @property
    def weight(self) -> int:
        """As ChatRequest's."""
        return len(self.system) + sum(20 + len(value) for message in self.messages for value in message.values())

    @property
    def shown_thoughts(self) -> ShownThoughts:
        """All, where nothing is said of them."""
        if self.thinking is None:
            return ShownThoughts()
        return ShownThoughts(blocks=_THINKS[self.thinking.type], text=self.thinking.display != "omitted")

    @property
    def template_variables(self) -> dict[str, Any]:
        """What the chat template gets beside the messages; chat_template_kwargs go before."""
        variables: dict[str, Any] = {}
        if self.thinking is not None:
            thinks = _THINKS[self.thinking.type]
            variables = {"enable_thinking": thinks, "thinking": thinks}
        if self.output_config is not None and self.output_config.effort is not None:
            variables["reasoning_effort"] = self.output_config.effort
        return variables | self.chat_template_kwargs

    @property
    def form(self) -> StructuredOutputsParams | None:
        """Raises ApiError for a form that is none."""
        wanted, name = self.output_format, "output_format"
        if self.output_config is not None and self.output_config.format is not None:
            wanted, name = self.output_config.format, _FORM
        if wanted is None:
            return None
        if wanted.get("type") != "json_schema":
            raise ApiError(400, f"{name}.type must be 'json_schema', got {shown(wanted.get('type'))}.", f"{name}.type")
        schema = wanted.get("schema")
        if not isinstance(schema, (dict, bool)):
            raise ApiError(400, f"{name}.schema must be a JSON schema, got {shown(schema)}.", f"{name}.schema")
        return StructuredOutputsParams(json=schema, name=name)

    def check(self) -> None:
        """Raises ApiError for values that these fields do not have."""
        if (thinking := self.thinking) is not None:
            _check_word("thinking.type", thinking.type, tuple(_THINKS))
            _check_word("thinking.display", thinking.display, _DISPLAYS)
            budget = thinking.budget_tokens
            if thinking.type == "enabled" and budget is None:
                raise ApiError(400, "thinking.budget_tokens is missing: how many tokens may be thought, at least "
                               f"{LEAST_BUDGET}; or send thinking.type 'adaptive'.", "thinking.budget_tokens")
            if budget is not None and budget < LEAST_BUDGET:
                raise ApiError(400, f"thinking.budget_tokens must be at least {LEAST_BUDGET}, got {shown(budget)}.",
                               "thinking.budget_tokens")
        if self.output_config is not None:
            check_effort("output_config.effort", self.output_config.effort)

    def choice(self, unknown: UnknownFields) -> ToolChoice:
        """Raises ApiError that names the place."""
        tools = [_as_openai_has_it(tool, f"tools[{i}]", unknown) for i, tool in enumerate(self.tools or [])]
        sent = self.tool_choice
        if sent is None:
            return checked_choice(tools, None, several=True)
        if not tools and sent.type in ("any", "tool"):
            raise ApiError(400, f"tool_choice.type is {sent.type!r}, and there are no tools to choose from.",
                           "tool_choice.type")
        choice: str | dict[str, Any] | None = _CHOICES.get(sent.type)
        if sent.type == "tool":
            if sent.name is None:
                raise ApiError(400, "tool_choice.name is missing: the tool that is to be called.", "tool_choice.name")
            choice = {"type": "function", "function": {"name": sent.name}}
        elif choice is None:
            raise ApiError(400, f"tool_choice.type must be one of {', '.join(_CHOICES)}, tool; got {shown(sent.type)}.",
                           "tool_choice.type")
        return checked_choice(tools, choice, several=not sent.disable_parallel_tool_use)

    def conversation(self, images: SentImages, max_model_len: int) -> list[dict[str, Any]]:
        """As `conversation_of`."""
        return conversation_of(self.system, self.messages, images, max_model_len)


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    max_tokens: Annotated[int, about("The most tokens of the reply, thoughts included.")]
    stream: Annotated[bool, meanings.STREAM] = False
    stop_sequences: Annotated[list[str] | None, about("Texts at which the reply ends, without them.")] = None
    temperature: Annotated[float | None, meanings.TEMPERATURE] = None
    top_p: Annotated[float | None, meanings.TOP_P] = None
    top_k: Annotated[int | None, about("Tokens are drawn from this many of the likeliest.")] = None
    # vLLM's and Quire's.
    seed: Annotated[int | None, meanings.SEED] = None
    priority: Annotated[int, meanings.PRIORITY] = 0
    cache_salt: Annotated[str, meanings.CACHE_SALT] = ""

    @property
    def as_chat(self) -> ChatRequest:
        """What is to be checked and sampled, without what it is about."""
        return ChatRequest(
            messages=[], model=self.model, stream=self.stream, max_tokens=self.max_tokens, stop=self.stop_sequences,
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, seed=self.seed, priority=self.priority,
            cache_salt=self.cache_salt, chat_template_kwargs=self.template_variables)

    def check(self) -> None:
        super().check()
        if self.max_tokens < 1:
            raise ApiError(400, f"max_tokens must be at least 1, got {shown(self.max_tokens)}.", "max_tokens")

    @property
    def thinking_budget(self) -> int | None:
        """The most tokens that are thought; None: any number."""
        return None if self.thinking is None else self.thinking.budget_tokens


def _check_word(name: str, value: str | None, words: tuple[str, ...]) -> None:
    if value is not None and value not in words:
        raise ApiError(400, f"{name} must be one of {', '.join(words)}; got {shown(value)}.", name)


def _as_openai_has_it(tool: dict[str, Any], where: str, unknown: UnknownFields) -> dict[str, Any]:
    """Its name, and that there are no two of one, is for `checked_choice` to see."""
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise ApiError(400, f"{where}.type is {shown(kind)}, a tool of Anthropic's own. This server takes tools of "
                       "type 'custom', with an input_schema.", f"{where}.type")
    for name, value in tool.items():
        if name not in _TOOL_FIELDS and name not in _HARMLESS_IN_TOOLS and value is not None:
            unknown.meet(name, f"{where}.{name}", _TOOL_FIELDS)
    if not isinstance(tool.get("input_schema"), dict):
        raise ApiError(400, f"{where}.input_schema must be a JSON schema: an object, got "
                       f"{shown(tool.get('input_schema'))}.", f"{where}.input_schema")
    function = {"name": tool.get("name"), "description": tool.get("description"), "parameters": tool["input_schema"],
                "strict": tool.get("strict")}
    return {"type": "function", "function": {key: value for key, value in function.items()
                                             if value is not None or key == "name"}}


class TokenCount(msgspec.Struct):
    input_tokens: int


class OutputTokensDetails(msgspec.Struct, frozen=True):
    thinking_tokens: int


class MessageUsage(msgspec.Struct, frozen=True):
    """`input_tokens` are those that were in no cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0  # what is computed is cached unasked, and costs nothing more
    output_tokens_details: OutputTokensDetails | msgspec.UnsetType = msgspec.UNSET  # where something was thought


class MessageReply(msgspec.Struct, kw_only=True):
    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[Annotated[msgspec.Raw, json_of(dict[str, Any])]]  # blocks of app/replies/blocks.py
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: MessageUsage
