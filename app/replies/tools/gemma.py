"""`<|tool_call>call:NAME{KEY:<|"|>TEXT<|"|>,KEY:42}<tool_call|>`: Gemma 4; FunctionGemma the same with other marks.

Objects without quotes around their keys, and text between marks of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quire.app.replies.json_text import quoted
from quire.app.replies.markers import Markers
from quire.app.replies.tools.parameters import DEFINITIONS, Schema, TooDeepError, forms, parameters, resolved, types
from quire.app.replies.tools.parser import Form, Schemas
from quire.app.replies.tools.python_literal import as_json
from quire.app.replies.tools.script import Script, Step

_CALL = "call:"
_CLOSING = {"{": "}", "[": "]"}
_MOST_LEVELS = 4  # of objects and lists that a grammar forms
_OBJECT, _ARRAY = frozenset({"object"}), frozenset({"array"})
_SIMPLE = frozenset({"number", "boolean", "null", "integer"})
_NOTHING: Form = {"type": "const_string", "value": ""}


@dataclass(frozen=True, slots=True)
class Marks:
    begin: str
    end: str
    text: str  # on both sides of one

    @property
    def all(self) -> tuple[str, ...]:
        return self.begin, self.end, self.text


GEMMA4 = Marks("<|tool_call>", "<tool_call|>", '<|"|>')
FUNCTION_GEMMA = Marks("<start_function_call>", "<end_function_call>", "<escape>")


class GemmaParser(Script):
    def __init__(self, schemas: Schemas, marks: Marks) -> None:
        super().__init__(schemas)
        self._marks = marks
        self._outside = Markers(marks.begin)
        self._inside = Markers(marks.end, marks.begin)
        self._text_end = Markers(marks.text)
        self._signs = Markers(marks.text, marks.end, *"{}[],:")

    def read(self) -> Step[None]:
        while (mark := (yield from self.until_call(self._outside))):
            while mark == self._marks.begin:
                self.keep(mark)
                yield from self.spaces()
                while (yield from self.starts(mark)):
                    yield from self.spaces()
                name = (yield from self.word()) if (yield from self.starts(_CALL)) else ""
                if not name or (yield from self.spaces()) != "{":
                    self.no_call()
                    break
                self.forget()
                self.call(name)
                if not (yield from self._arguments()):
                    break
                mark = yield from self.until(self._inside, self.drop)

    def _arguments(self) -> Step[bool]:
        """Reads an object and gives it out as JSON. False: the call ended within."""
        within: list[str] = []  # the brackets that are open
        comma, bare = "", list[str]()
        awaits_value = False  # a key was read, and nothing behind it
        while True:
            sign = yield from self.until(self._signs, bare.append)
            if sign == ":" and within and (awaits_value or within[-1] == "["):
                bare.append(sign)  # of a text without marks, such as a time of day
                continue
            word = "".join(bare).strip() or ('""' if awaits_value and sign in (",", "}") else "")
            bare.clear()
            awaits_value = sign == ":"
            if word and sign:
                written = quoted(word.strip('"')) if sign == ":" else as_json(word) or quoted(word)
                self.argue(comma + written)
                comma = ""
            if sign in ("", self._marks.end):
                return False
            if sign == ",":
                comma = ", "
            elif sign == ":":
                self.argue(": ")
            elif sign in _CLOSING:
                self.argue(comma + sign)
                comma = ""
                within.append(sign)
            elif sign == self._marks.text:
                self.argue(f'{comma}"')
                comma = ""
                if not (yield from self.until(self._text_end, lambda text: self.argue(quoted(text)[1:-1]))):
                    return False
                self.argue('"')
            else:
                self.argue(_CLOSING[within.pop()])
                comma = ""
                if not within:
                    return True


def tag(marks: Marks) -> Callable[[str, Mapping[str, Any]], Form]:
    def of_tool(name: str, schema: Mapping[str, Any]) -> Form:
        return {"begin": f"{marks.begin}{_CALL}{name}{{", "content": _members(schema, marks, _MOST_LEVELS),
                "end": f"}}{marks.end}"}
    return of_tool


def _members(schema: Schema, marks: Marks, depth: int) -> Form:
    def one(key: str, part: Schema) -> Form:
        return {"type": "tag", "begin": f"{key}:", "content": _value(part, marks, depth - 1), "end": ""}

    return parameters(schema, one, ",")


def _value(schema: Schema, marks: Marks, depth: int) -> Form:
    parts = [_one(is_text, form, schema, marks, depth) for is_text, form in forms(schema, schema)]
    return parts[0] if len(parts) == 1 else {"type": "or", "elements": parts}


def _one(is_text: bool, form: Form, root: Schema, marks: Marks, depth: int) -> Form:
    if is_text:
        return {"type": "tag", "begin": marks.text, "content": form, "end": marks.text}
    schema = form["json_schema"]
    kinds = types(schema, schema)
    if kinds == _OBJECT and "const" not in schema:
        if not depth and root.get("required"):
            raise _too_deep()
        content = _members(schema, marks, depth) if depth else _NOTHING
        return {"type": "tag", "begin": "{", "content": content, "end": "}"}
    if kinds == _ARRAY and "const" not in schema:
        return {"type": "tag", "begin": "[", "content": _items(schema, marks, depth), "end": "]"}
    if "const" not in schema and (kinds is None or not kinds <= _SIMPLE):
        schema = {"type": sorted(_SIMPLE)}  # what may be anything is something simple
    return {"type": "json_schema", "json_schema": schema}


def _items(schema: Schema, marks: Marks, depth: int) -> Form:
    items, must_come = schema.get("items"), bool(schema.get("minItems"))
    shared = {name: schema[name] for name in DEFINITIONS if name in schema}
    item = resolved({**shared, **(items if isinstance(items, dict) else {})}, schema)
    try:
        if not depth:
            raise _too_deep()
        one: Form = {"type": "tag", "begin": "", "content": _value({**shared, **item}, marks, depth - 1), "end": ""}
    except TooDeepError:
        if must_come:
            raise
        return _NOTHING
    return {"type": "tags_with_separator", "separator": ",", "tags": [one], "at_least_one": must_come}


def _too_deep() -> TooDeepError:
    return TooDeepError(f"tools: this model's calls are formed to at most {_MOST_LEVELS} levels of objects and lists; "
                        "leave tool_choice and strict out, or make the parameters flatter.", "tools")
