"""How a model replies: in which tags it thinks, and how it writes calls. Its chat template tells, or the operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quire.app.replies import generic_tools
from quire.app.replies.parser import ReplyParser
from quire.app.replies.thinking import AUTO, THINK_TAGS, Thinking, ThinkTags
from quire.app.replies.tools import form
from quire.app.replies.tools.formats import FORMATS, GENERIC, ToolFormat, format_of
from quire.app.schemas.tools import ToolChoice
from quire.engine.structured_outputs import StructuredOutputsParams
from quire.engine.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ReplyStyle:
    format: ToolFormat
    knows_tools: bool  # whether the template has a place for them
    tags: ThinkTags | None

    @staticmethod
    def of(template: str, tool_parser: str = AUTO, reasoning_parser: str = AUTO) -> ReplyStyle:
        """Of a chat template's source."""
        found = format_of(template) if tool_parser == AUTO else FORMATS[tool_parser]
        tags = next((tags for tags in THINK_TAGS.values() if tags.end in template), None)
        if reasoning_parser != AUTO:
            tags = THINK_TAGS.get(reasoning_parser)
        return ReplyStyle(found or FORMATS[GENERIC], "tools" in template, tags)

    def conversation(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As the template takes it."""
        return messages if self.knows_tools else generic_tools.told(messages, tools)

    def parser(self, choice: ToolChoice, prompt: str) -> ReplyParser | None:
        """For one choice of a reply to `prompt`; None where its text is all that there is."""
        tools = self.format.parser(choice.schemas) if choice.tools else None
        thinking = None
        if self.tags is not None:
            ends = (self.format.trigger,) if tools is not None else ()
            thinking = Thinking(self.tags, is_open=self.tags.are_open(prompt), ends=ends)
        return None if thinking is None and tools is None else ReplyParser(thinking, tools)

    def shown_ids(self, choice: ToolChoice, tokenizer: Tokenizer) -> frozenset[int]:
        """The special tokens that the parser must see."""
        texts = set(self.format.shown if choice.tools else ())
        if self.tags is not None:
            texts |= {self.tags.start, self.tags.end}
        return frozenset(i for i in tokenizer.special_ids if tokenizer.token_text(i) in texts) if texts else frozenset()

    def wanted_form(self, choice: ToolChoice, asked: StructuredOutputsParams | None, prompt: str
                    ) -> StructuredOutputsParams | None:
        """The form of all of the reply: what the request `asked` for, its calls, and the thinking before them."""
        part = None if asked is None else form.of_params(asked)
        schemas = choice.schemas
        if choice.must_call:
            part = form.calls(self.format, schemas, several=choice.several)
        elif choice.tools and part is not None:
            part = form.either(form.calls(self.format, schemas, several=choice.several), part)
        elif choice.tools and choice.strict:
            part = form.text_and_calls(self.format, schemas, several=choice.several)
        if part is None or (self.tags is None and not choice.tools):
            return asked
        if self.tags is not None:
            part = form.after_thinking(self.tags, part, is_open=self.tags.are_open(prompt))
        name = "tools" if asked is None or choice.must_call else asked.name
        return StructuredOutputsParams(structural_tag={"format": part}, name=name)
