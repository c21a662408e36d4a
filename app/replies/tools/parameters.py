"""A call's arguments that are written one by one: their types, and the form of each, by the tool's schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from quire.app.replies.json_text import quoted
from quire.app.replies.tools.parser import Form
from quire.app.replies.tools.python_literal import as_json
from quire.engine.errors import InvalidRequestError

Schema = Mapping[str, Any]
TEXT = frozenset({"string"})
_MOST_REFERENCES = 32  # one after the other, without an end where they go in a circle
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array",
          type(None): "null"}
DEFINITIONS = ("$defs", "definitions")


class TooDeepError(InvalidRequestError):
    """A value whose form would have too many levels."""


def parameters(schema: Schema, one: Callable[[str, Schema], Form], separator: str = "") -> Form:
    """Of all that the schema names, in its order; `one` makes the form of each. What may lack and is too deep does.

    Raises TooDeepError: one that must come is."""
    root = resolved(schema, schema)
    required = list_of(root, "required")
    shared = {name: schema[name] for name in DEFINITIONS if name in schema}
    named = [(key, {**shared, **part} if shared else part) for key in object_of(root, "properties")
             if (part := of_parameter(key, schema)) is not None]
    elements, optional = list[Form](), list[bool]()
    for key, part in named:
        try:
            elements.append(one(key, part))
            optional.append(key not in required)
        except TooDeepError:
            if key in required:
                raise
    if not elements:
        return {"type": "const_string", "value": ""}
    return {"type": "some_of", "separator": separator, "elements": elements, "optional": optional}


def of_parameter(key: str, schema: Schema) -> Schema | None:
    """The schema of one; None: no value may be given. One that is not named may be anything."""
    part = object_of(resolved(schema, schema), "properties").get(key, True)
    return None if part is False else resolved(part, schema) if isinstance(part, dict) else {}


def resolved(schema: Schema, root: Schema) -> Schema:
    """What a `$ref` leads to."""
    for _ in range(_MOST_REFERENCES):
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        found: Any = root
        for step in reference[2:].split("/"):
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            break
        schema = {**{name: value for name, value in schema.items() if name != "$ref"}, **found}
    return schema


def object_of(schema: Schema, name: str) -> dict[str, Any]:
    """A keyword's value; empty where it is none. A grammar refuses wrong ones, but a model may call without one."""
    value = schema.get(name)
    return value if isinstance(value, dict) else {}


def list_of(schema: Schema, name: str) -> list[Any]:
    value = schema.get(name)
    return value if isinstance(value, list) else []


def types(schema: Schema, root: Schema) -> frozenset[str] | None:
    """JSON's types of the values that a schema allows; None: all."""
    return _types(schema, root, _MOST_REFERENCES)


def _types(schema: Any, root: Schema, depth: int) -> frozenset[str] | None:
    if not isinstance(schema, dict) or not depth:
        return None
    schema = resolved(schema, root)
    if (values := _listed(schema)) is not None:
        return frozenset(_TYPES[type(value)] for value in values)
    named = schema.get("type")
    if named is not None:
        named = [named] if isinstance(named, str) else list_of(schema, "type")
        return frozenset(name for name in named if isinstance(name, str))
    for name in ("anyOf", "oneOf"):
        if branches := list_of(schema, name):
            found = [_types(branch, root, depth - 1) for branch in branches]
            return None if None in found else frozenset().union(*(one for one in found if one is not None))
    for branch in list_of(schema, "allOf"):
        if (one := _types(branch, root, depth - 1)) is not None:
            return one
    return None


def _listed(schema: Schema) -> list[Any] | None:
    """The values that are named one by one."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return values if isinstance(values, list) else None


def value_as_json(text: str, schema: Schema, root: Schema) -> str:
    """What a model wrote for a value without quotes around text."""
    allowed = types(schema, root)
    if allowed == TEXT or text in (_listed(schema) or ()):
        return quoted(text)
    written = text.strip()
    try:
        value = json.loads(written, parse_constant=_no_json)
    except (ValueError, RecursionError):
        as_literal = as_json(written)
        if as_literal is None:
            return quoted(text)
        written, value = as_literal, json.loads(as_literal)
    kind = _TYPES[type(value)]
    fits = allowed is None or kind in allowed or (kind in ("integer", "number") and allowed & {"integer", "number"})
    return quoted(text) if not fits and allowed is not None and "string" in allowed else written


def _no_json(constant: str) -> NoReturn:
    raise ValueError(constant)


@dataclass(frozen=True, slots=True)
class Markup:
    """How a parameter is written: `begin`, which may depend on whether the value is text, the value, `gap`, `end`."""

    begin: Callable[[str, bool], str]
    end: str
    gap: str = ""
    after: str = ""  # what is between parameters

    def form(self, key: str, schema: Schema) -> Form:
        kinds = list(forms(schema, schema))
        if (free := next((part for part in kinds if part[1] == _ANY_TEXT), None)) is not None:
            kinds = [part for part in kinds if part == free or not part[0]]
        parts: list[Form] = []
        for is_text, content in kinds:
            # Free text ends with the mark itself, whatever is in front of it: so it is read.
            end = self.end if content == _ANY_TEXT else self.gap + self.end
            parts.append({"type": "tag", "begin": self.begin(key, is_text), "content": content, "end": end})
        one: Form = parts[0] if len(parts) == 1 else {"type": "or", "elements": parts}
        if not self.after:
            return one
        return {"type": "sequence", "elements": [one, {"type": "const_string", "value": self.after}]}


_ANY_TEXT: Form = {"type": "any_text"}
_KEYWORDS = ("minLength", "maxLength", "pattern")


def forms(schema: Schema, root: Schema) -> Iterator[tuple[bool, Form]]:
    """The kinds of values: whether each is text, and its form."""
    schema = resolved(schema, root)
    if (values := _listed(schema)) is not None:
        yield from ((True, {"type": "const_string", "value": value}) if isinstance(value, str) else
                    (False, {"type": "json_schema", "json_schema": {"const": value}}) for value in values)
        return
    for name in ("anyOf", "oneOf"):
        if (branches := list_of(schema, name)) and "type" not in schema:
            for branch in branches:
                yield from forms(branch if isinstance(branch, dict) else {}, root)
            return
    allowed = types(schema, root)
    if allowed is not None and "string" in allowed:
        yield True, _text_form(schema)
        allowed -= TEXT
        if not allowed:
            return
        schema = {**schema, "type": sorted(allowed)}
    shared = {name: root[name] for name in DEFINITIONS if name in root}
    yield False, {"type": "json_schema", "json_schema": {**shared, **schema}}


def _text_form(schema: Schema) -> Form:
    least, most, pattern = (schema.get(name) for name in ("minLength", "maxLength", "pattern"))
    if isinstance(pattern, str):
        begin = "" if pattern.startswith("^") else r"(.|\n)*"
        is_to_end = pattern.endswith("$") and not pattern.endswith(r"\$")
        inner = pattern.removeprefix("^")[:-1 if is_to_end else None]
        return {"type": "any_text", "pattern": f"{begin}({inner}){'' if is_to_end else _REST}"}
    if least or most is not None:
        return {"type": "any_text", "pattern": rf"(.|\n){{{least or 0},{'' if most is None else most}}}"}
    return _ANY_TEXT


_REST = r"(.|\n)*"
