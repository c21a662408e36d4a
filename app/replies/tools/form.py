"""The form of a reply that must call tools, or whose calls must fit their schemas: what a grammar is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quire.app.replies.thinking import ThinkTags, Where
from quire.app.replies.tools.formats import ToolFormat
from quire.app.replies.tools.parser import Form, Schemas
from quire.engine.errors import InvalidRequestError
from quire.engine.grammar.json_options import closed
from quire.engine.grammar.structural_tags import format_of
from quire.engine.structured_outputs import StructuredOutputsParams

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "additionalProperties": False}


def calls(format: ToolFormat, schemas: Schemas, *, several: bool) -> Form:
    """Nothing but calls: one, or one or more."""
    wanted = _calls(format, schemas, several=several)
    around = (_constant(format.opening), wanted, _constant(format.closing))
    return sequence([part for part in around if part is not None])


def text_and_calls(format: ToolFormat, schemas: Schemas, *, several: bool, but_for: Sequence[str] = ()) -> Form:
    """Any text, with or without calls in it, which fit their schemas; text that does not begin with `but_for`."""
    tags = _tags(format, schemas)
    if not format.trigger:
        first = (format.opening or tags[0]["begin"])[0]
        return either(calls(format, schemas, several=several), text_but_for(first, *but_for))
    if format.opening:
        tags = [{"type": "tag", "begin": format.opening, "content": _calls(format, schemas, several=several),
                 "end": format.closing}]
    mixed: Form = {"type": "triggered_tags", "triggers": [format.trigger], "tags": tags,
                   "stop_after_first": not several}
    if not but_for:
        return mixed
    begun: Form = {"type": "regex", "pattern": rf"\s*({_other([format.trigger, *but_for], spaces=True)})"}
    return either(calls(format, schemas, several=several), sequence([begun, mixed]))


def text_but_for(*beginnings: str) -> Form:
    """Any text, or none, that begins otherwise, after white space."""
    cut = {text[:length] for text in beginnings for length in range(1, len(text))}
    whole = "|".join([f"({_other(beginnings, spaces=True)})(.|\\n)*", *map(_literal, sorted(cut))])
    return {"type": "regex", "pattern": rf"\s*({whole})?"}


def _other(texts: Sequence[str], *, spaces: bool = False) -> str:
    """A pattern of the shortest texts that begin none of `texts`; `spaces`: nor with white space."""
    firsts = {text[0] for text in texts}
    characters = _literal("".join(sorted(firsts)))
    branches = ["[^" + characters + (r"\s" if spaces else "") + "]"]
    for first in sorted(firsts):
        if all(rests := [text[1:] for text in texts if text[0] == first]):
            branches.append(f"{_literal(first)}({_other(rests)})")
    return "|".join(branches)


def _literal(text: str) -> str:
    """In a pattern, also within brackets."""
    return "".join(f"\\x{{{ord(character):x}}}" for character in text)


def _calls(format: ToolFormat, schemas: Schemas, *, several: bool) -> Form:
    return {"type": "tags_with_separator", "tags": _tags(format, schemas), "separator": format.separator,
            "at_least_one": True, "stop_after_first": not several}


def _tags(format: ToolFormat, schemas: Schemas) -> list[Form]:
    """Arguments that a schema does not name are no use to a tool, whatever JSON schema says of them by default."""
    return [{"type": "tag", **format.tag(name, closed(schema) or NO_ARGUMENTS)} for name, schema in schemas.items()]


def of_params(asked: StructuredOutputsParams) -> Form:
    """The same form as a part of a larger one."""
    if asked.structural_tag is not None:
        assert isinstance(asked.structural_tag, dict)
        try:
            return dict(format_of(asked.structural_tag))
        except ValueError as error:
            raise InvalidRequestError(f"{asked.name}: {error}.", asked.name) from None
    if asked.regex is not None:
        return {"type": "regex", "pattern": asked.regex}
    if asked.grammar is not None:
        return {"type": "grammar", "grammar": asked.grammar}
    if asked.choice is not None:
        return either(*({"type": "const_string", "value": text} for text in asked.choice))
    schema = ANY_OBJECT if asked.json_object else asked.json
    return {"type": "json_schema", "json_schema": closed(schema) if asked.disable_additional_properties else schema,
            "disable_any_whitespace": asked.disable_any_whitespace, "whitespace_pattern": asked.whitespace_pattern}


def after_thinking(tags: ThinkTags, part: Form, begins: Where, budget: int | None = None) -> Form:
    """What is thought has no form, and may be left out where the prompt has not begun it. With a `budget` of tokens,
    `part` must not take up a thought itself (`text_but_for`)."""
    if begins is Where.AFTER:
        return part
    content: Form = {"type": "any_text"} if budget is None else {"type": "any_text", "max_tokens": budget}
    thought: Form = {"type": "tag", "begin": "", "content": content, "end": tags.end}
    space: Form = {"type": "regex", "pattern": r"\n{0,2}"}
    if begins is Where.INSIDE:
        return sequence([thought, space, part])
    return either(sequence([{**thought, "begin": tags.start}, space, part]), part)


def either(*parts: Form) -> Form:
    return parts[0] if len(parts) == 1 else {"type": "or", "elements": list(parts)}


def sequence(parts: Sequence[Form]) -> Form:
    return parts[0] if len(parts) == 1 else {"type": "sequence", "elements": list(parts)}


def _constant(text: str) -> Form | None:
    return {"type": "const_string", "value": text} if text else None
