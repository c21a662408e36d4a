"""POST /v1/responses: what it takes and what it gives, beyond the fields that all generation shares."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec

from quire.app.errors import ApiError
from quire.app.json_pieces import as_raw
from quire.app.schemas import meanings
from quire.app.schemas.described import about, json_of
from quire.app.schemas.form import stated_form
from quire.app.schemas.sampling import SamplingFields, check_at_most, check_logprobs, check_max_tokens
from quire.app.schemas.template import check_effort, check_template_kwargs, template_variables
from quire.app.schemas.tools import MAX_TOOLS, ToolChoice, check_function, checked_choice, only_allowed
from quire.app.schemas.unknown import OfOthers, UnknownFields
from quire.app.settings import ServeSettings
from quire.engine.arguments import shown
from quire.engine.image_options import checked_options
from quire.engine.sampling_params import SamplingParams
from quire.engine.structured_outputs import StructuredOutputsParams

LOGPROBS = "message.output_text.logprobs"
# The others are about what never comes here: calls of OpenAI's own tools, images, reasoning that is not sent as text.
INCLUDABLE = (LOGPROBS, "reasoning.encrypted_content", "file_search_call.results", "web_search_call.results",
              "web_search_call.action.sources", "code_interpreter_call.outputs", "message.input_image.image_url",
              "computer_call_output.output.image_url")
MAX_METADATA = 16  # OpenAI's limits: each reply repeats it
MAX_METADATA_CHARACTERS = 512

_ONE = "a response is one reply; send the request again for another"
_BEAMS = "beams are /v1/chat/completions' and /v1/completions'"
_LENGTH = "here it is max_output_tokens"
# Wishes that change nothing here, each with the value that is fulfilled all the same.
_NOT_HEEDED = {"text": {"verbosity": "medium"},
               "reasoning": {"summary": "auto", "generate_summary": "auto", "context": "auto", "mode": "standard"}}
_CHOICES = ('auto, none, required, {"type": "function", "name": NAME}, or {"type": "allowed_tools", "mode": "auto" or '
            '"required", "tools": [{"type": "function", "name": NAME}, ...]}')


class TextConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ReasoningConfig(msgspec.Struct, frozen=True):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None
    context: str | None = None
    mode: str | None = None


class ResponsesRequest(SamplingFields, frozen=True, kw_only=True):
    OF_OTHERS: ClassVar[dict[str, OfOthers]] = {
        "n": OfOthers(_ONE, 1), "best_of": OfOthers(_ONE, 1), "use_beam_search": OfOthers(_BEAMS, False),
        **dict.fromkeys(("length_penalty", "early_stopping", "length_counts_prompt"), OfOthers(_BEAMS)),
        "max_tokens": OfOthers(_LENGTH), "max_completion_tokens": OfOthers(_LENGTH),
        "response_format": OfOthers("here it is text.format"),
        "reasoning_effort": OfOthers("here it is reasoning.effort"),
        "prompt_logprobs": OfOthers("a response has no place for them; use /v1/chat/completions"),
    }

    input: Annotated[
        msgspec.Raw, json_of(str | list[dict[str, Any]]),  # see `response_input`
        about("What is said: a text, or items as a reply's output has them, messages and results of functions.")]
    instructions: Annotated[str | None, about("The system message.")] = None
    max_output_tokens: Annotated[int | None, meanings.MOST_TOKENS] = None
    max_tool_calls: Annotated[
        int | None, about("Of the server's own tools, of which there are none: without effect.")] = None
    metadata: Annotated[
        dict[str, str], about("Up to 16 texts, which the reply repeats.")] = msgspec.field(default_factory=dict)
    include: Annotated[
        list[str], about(f"`{LOGPROBS}` asks for logprobs.")] = msgspec.field(default_factory=list)
    text: Annotated[TextConfig, about("`format`: text, any JSON object, or JSON by a schema.")] = TextConfig()
    reasoning: Annotated[
        ReasoningConfig, about("`effort`: how much the model thinks, where its template knows that.")
    ] = ReasoningConfig()
    top_logprobs: Annotated[int | None, about("Alternatives to each token of the text, with logprobs.")] = None
    tools: Annotated[
        list[dict[str, Any]], about("Functions that the model may call: name, description and parameters beside the "
                                    "type.")] = msgspec.field(default_factory=list)
    tool_choice: Annotated[
        str | dict[str, Any], about("`auto`, `none`, `required`, one function by its name, or those that are allowed.")
    ] = "auto"
    parallel_tool_calls: Annotated[bool, meanings.PARALLEL_CALLS] = True
    include_reasoning: Annotated[bool, meanings.INCLUDE_REASONING] = True
    chat_template_kwargs: Annotated[dict[str, Any], meanings.TEMPLATE_KWARGS] = msgspec.field(default_factory=dict)
    mm_processor_kwargs: Annotated[dict[str, Any] | None, meanings.PROCESSOR_KWARGS] = None

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to each token; None where nothing is to be told of tokens."""
        return self.top_logprobs or 0 if LOGPROBS in self.include or self.top_logprobs else None

    @property
    def template_variables(self) -> dict[str, Any]:
        return template_variables(self.chat_template_kwargs, self.reasoning.effort)

    @property
    def weight(self) -> int:
        return len(self.input) + len(self.instructions or "")

    def check(self, settings: ServeSettings, unknown: UnknownFields) -> None:
        """Raises ApiError for what can be seen without the engine."""
        self.check_sampling(settings)
        check_max_tokens("max_output_tokens", self.max_output_tokens, "as many as the context has room for")
        check_logprobs("top_logprobs", self.top_logprobs, settings)
        check_effort("reasoning.effort", self.reasoning.effort)
        check_template_kwargs(self.chat_template_kwargs)
        checked_options(self.mm_processor_kwargs)
        check_at_most("metadata", len(self.metadata), MAX_METADATA, what="entries")
        longest = max((len(text) for pair in self.metadata.items() for text in pair), default=0)
        check_at_most("metadata", longest, MAX_METADATA_CHARACTERS, what="characters in a name or value")
        for i, name in enumerate(self.include):
            if name not in INCLUDABLE:
                raise ApiError(400, f"include[{i}] must be one of {', '.join(INCLUDABLE)}; got {shown(name)}.",
                               f"include[{i}]")
        for name, wishes in _NOT_HEEDED.items():
            for wish, fulfilled in wishes.items():
                if getattr(getattr(self, name), wish) not in (None, fulfilled):
                    unknown.meet(wish, f"{name}.{wish}", (), of_clients=frozenset({wish}))

    def checked_choice(self) -> ToolChoice:
        """Raises ApiError that names the place."""
        check_at_most("tools", len(self.tools), MAX_TOOLS, what="tools")
        tools = [_as_chat_has_it(tool, f"tools[{i}]") for i, tool in enumerate(self.tools)]
        choice = self.tool_choice
        if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
            tools, choice = only_allowed(tools, choice, "tool_choice"), choice.get("mode", "auto")
        elif isinstance(choice, dict) and choice.get("type") == "function" and isinstance(choice.get("name"), str):
            choice = {"type": "function", "function": {"name": choice["name"]}}
        elif choice not in ("auto", "none", "required"):
            raise self._no_choice()
        return checked_choice(tools, choice, several=self.parallel_tool_calls)

    def _no_choice(self) -> ApiError:
        return ApiError(400, f"tool_choice must be one of {_CHOICES}; got {shown(self.tool_choice)}.", "tool_choice")

    def _response_format(self) -> StructuredOutputsParams | None:
        return stated_form("text.format", self.text.format)

    def reply(self, id: str, created: int, model: str, params: SamplingParams) -> ResponseReply:
        """The reply as it is before anything was generated, which repeats what was asked for. Raises ApiError."""
        reasoning = {"effort": self.reasoning.effort, "summary": self.reasoning.summary}
        return ResponseReply(
            id=id, created_at=created, model=model, instructions=self.instructions,
            max_output_tokens=self.max_output_tokens, max_tool_calls=self.max_tool_calls, metadata=self.metadata,
            parallel_tool_calls=self.parallel_tool_calls, reasoning=as_raw(reasoning),
            temperature=params.temperature, top_p=params.top_p, top_logprobs=self.top_logprobs or 0,
            text=_echo("text", TextConfig(self.text.format or {"type": "text"}, self.text.verbosity)),
            tools=_echo("tools", self.tools), tool_choice=_echo("tool_choice", self.tool_choice))


def _echo(name: str, value: object) -> msgspec.Raw:
    try:
        return as_raw(value)
    except RecursionError:
        raise ApiError(400, f"{name} has too many levels of lists and objects.", name) from None


def _as_chat_has_it(tool: dict[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type", "function")
    if kind != "function":
        raise ApiError(400, f"{where}.type is {shown(kind)}, and this server has no tools of its own; it takes tools "
                       "of the type 'function', which the program that asks runs itself.", f"{where}.type")
    if "name" not in tool and "function" in tool:
        raise ApiError(400, f"{where}.name is missing: name, description and parameters stand beside the type here, "
                       "not within function as in /v1/chat/completions.", f"{where}.name")
    function = {name: value for name, value in tool.items() if name != "type"}
    check_function(function, where)
    return {"type": "function", "function": function}


class InputTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0  # which are not counted; newer clients need the field


class OutputTokensDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct, frozen=True):
    reason: str = "max_output_tokens"


class ResponseError(msgspec.Struct, frozen=True):
    code: str
    message: str


class ResponseReply(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "response"
    created_at: int
    completed_at: int | None = None
    status: str = "in_progress"  # then "completed", "incomplete" or "failed"
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[msgspec.Raw] = []  # items: see `quire.app.replies.items`
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: msgspec.Raw  # as sent, like text, tools and tool_choice
    service_tier: None = None
    store: bool = False
    temperature: float
    text: msgspec.Raw
    tool_choice: msgspec.Raw
    tools: msgspec.Raw
    top_logprobs: int
    top_p: float
    truncation: str = "disabled"
    usage: ResponseUsage | None = None


class OutputText(msgspec.Struct, frozen=True):
    text: str
    logprobs: list[msgspec.Raw]  # of ChatLogprob
    type: str = "output_text"
    annotations: tuple[()] = ()


class ReasoningText(msgspec.Struct, frozen=True):
    text: str
    type: str = "reasoning_text"


class MessageItem(msgspec.Struct, frozen=True):
    id: str
    content: list[msgspec.Raw]  # of OutputText
    status: str
    type: str = "message"
    role: str = "assistant"


class ReasoningItem(msgspec.Struct, frozen=True):
    id: str
    content: list[msgspec.Raw]  # of ReasoningText
    status: str
    type: str = "reasoning"
    summary: tuple[()] = ()
    encrypted_content: None = None


class CallItem(msgspec.Struct, frozen=True):
    id: str
    call_id: str
    name: str
    arguments: str  # JSON of an object
    status: str
    type: str = "function_call"
