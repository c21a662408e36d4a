"""How a model replies: in which tags it thinks, and how it writes calls. Its chat template tells, or the operator."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from quire.app.replies import generic_tools
from quire.app.replies.parser import ReplyParser
from quire.app.replies.thinking import AUTO, REASONING_PARSERS, THINK_TAGS, Thinking, ThinkTags, Where
from quire.app.replies.tools import form
from quire.app.replies.tools.formats import FORMATS, GENERIC, ToolFormat, format_of, named
from quire.app.replies.tools.parser import Form
from quire.app.schemas.tools import ToolChoice
from quire.engine.errors import InvalidRequestError
from quire.engine.structured_outputs import StructuredOutputsParams
from quire.engine.tokenizers.tokenizer import Tokenizer

_IN_SYSTEM = re.compile(r"message(?:\.|\[['\"])tools\b")
_AS_VARIABLE = re.compile(r"(?<![\w.'\"])tools(?![\w'\"])")


@dataclass(frozen=True, slots=True)
class ReplyStyle:
    format: ToolFormat
    knows_tools: bool  # whether the template has a place for them
    in_system: bool  # which is a field of the system's message, as Phi-4-mini's
    tags: ThinkTags | None

    @staticmethod
    def of(template: str, tool_parser: str = AUTO, reasoning_parser: str = AUTO) -> ReplyStyle:
        """Of a chat template's source."""
        found = format_of(template) if tool_parser == AUTO else named(tool_parser, template)
        tags = next((tags for tags in THINK_TAGS.values() if tags.end in template), None)
        if reasoning_parser != AUTO:
            tags = REASONING_PARSERS.get(reasoning_parser)
        in_system = bool(_IN_SYSTEM.search(template)) and not _AS_VARIABLE.search(template)
        return ReplyStyle(found or FORMATS[GENERIC], "tools" in template, in_system, tags)

    def conversation(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As the template takes it."""
        if self.in_system and tools:
            return generic_tools.in_system(messages, tools)
        return messages if self.knows_tools else generic_tools.told(messages, tools)

    def parser(self, choice: ToolChoice, prompt: str) -> ReplyParser | None:
        """For one choice of a reply to `prompt`; None where its text is all that there is."""
        tools = self.format.parser(choice.schemas) if choice.tools else None
        thinking = None
        if self.tags is not None:
            ends = (self.format.trigger,) if tools is not None and self.format.trigger else ()
            thinking = Thinking(self.tags, self.tags.where(prompt), ends)
        return None if thinking is None and tools is None else ReplyParser(thinking, tools)

    def shown_ids(self, choice: ToolChoice, tokenizer: Tokenizer) -> frozenset[int]:
        """The special tokens that the parser must see."""
        texts = set(self.format.shown if choice.tools else ())
        if self.tags is not None:
            texts |= {self.tags.start, self.tags.end}
        return _special_ids(tokenizer, frozenset(texts)) if texts else frozenset()

    def wanted_form(self, choice: ToolChoice, asked: StructuredOutputsParams | None, prompt: str,
                    thinking_budget: int | None = None) -> StructuredOutputsParams | None:
        """The form of all of the reply: what the request `asked` for, its calls, and the thinking before them, of at
        most `thinking_budget` tokens. Raises InvalidRequestError: the model's thinking cannot be bounded."""
        part = None if asked is None else form.of_params(asked)
        schemas, name = choice.schemas, "tools" if asked is None or choice.must_call else asked.name
        if choice.must_call:
            part = form.calls(self.format, schemas, several=choice.several)
        elif choice.tools and part is not None:
            part = form.either(form.calls(self.format, schemas, several=choice.several), part)
        elif choice.tools and choice.strict:
            part = form.text_and_calls(self.format, schemas, several=choice.several)
        begins = Where.AFTER
        if thinking_budget is not None:
            self._check_budget()
        if self.tags is not None:
            begins = self.tags.where(prompt)
            if begins is Where.AFTER:
                thinking_budget = None
            elif thinking_budget is not None and part is None:
                part, name = self._free(self.tags, choice, begins), "thinking_token_budget"
        if part is None or (self.tags is None and not choice.tools):
            return asked
        if self.tags is not None:
            part = form.after_thinking(self.tags, part, begins, thinking_budget)
        return StructuredOutputsParams(structural_tag={"format": part}, name=name)

    def _free(self, tags: ThinkTags, choice: ToolChoice, begins: Where) -> Form:
        """What may follow a bounded thought where nothing else is asked for."""
        marks = [tags.start] if begins is Where.BEFORE else []
        if not choice.tools:
            return form.text_but_for(*marks) if marks else {"type": "any_text"}
        return form.text_and_calls(self.format, choice.schemas, several=choice.several, but_for=marks)

    @property
    def bounds_thinking(self) -> bool:
        """Whether thinking can be given a budget."""
        return self.tags is not None and self.tags.end[0] in "<["

    def _check_budget(self) -> None:
        why = ("this model has no tags in which it thinks (--reasoning-parser names them where its template does not)"
               if self.tags is None else
               "this model's thinking ends with a sentence, which may be a part of a thought, too"
               if not self.bounds_thinking else "")
        if why:
            raise InvalidRequestError(f"thinking_token_budget: {why}; leave it out, or send -1.",
                                      "thinking_token_budget")


@lru_cache(maxsize=8)
def _special_ids(tokenizer: Tokenizer, texts: frozenset[str]) -> frozenset[int]:
    """Of the special tokens with these texts. A vocabulary may have a thousand of them, and each request asks."""
    return frozenset(i for i in tokenizer.special_ids if tokenizer.token_text(i) in texts)
