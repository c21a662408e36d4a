"""Structural tags: text in which some parts have a form, such as the calls of tools in an answer.

Both of vLLM's shapes: `structures` with `triggers`, and a tree of `format`s. They become one Lark grammar of
llguidance's. Special tokens within a text are asked for by their ids: no other tokens spell them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from quire.engine.grammar.costs import check_schema
from quire.engine.grammar.json_options import json_options
from quire.engine.grammar.regex import with_plain_digits

MAX_TOKENS = 1_000_000  # of a text that is bounded
_TEXT = r"/(.|\n)*/"


def lark_of_tags(wanted: Mapping[str, Any], special: Mapping[str, int], added: Mapping[str, int] | None = None) -> str:
    """`special`: texts of special tokens, and their ids; `added`: of other tokens that stand for a text of their own.
    Raises ValueError with the place of what is not understood."""
    return _Grammar(special, added or {}).of(format_of(wanted))


def format_of(wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tree of formats, of either shape. Raises ValueError."""
    if "structures" not in wanted:
        return _object(wanted.get("format"), "format")
    structures = [_object(each, "structures") for each in _listed(wanted["structures"], "structures")]
    return {"type": "triggered_tags", "triggers": wanted.get("triggers"), "tags": [
        {"begin": each.get("begin"), "content": {"type": "json_schema", "json_schema": each.get("schema", True)},
         "end": each.get("end")} for each in structures]}


def quoted(text: str) -> str:
    """As a text in a Lark grammar of llguidance's, which may not hold DEL as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


class _Grammar:
    """Rules, by the numbers in their names."""

    def __init__(self, special: Mapping[str, int], added: Mapping[str, int]) -> None:
        self._special, self._added = special, added
        self._split = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "$^")
        self._rules: list[str] = []

    def of(self, form: Mapping[str, Any]) -> str:
        start = self._form(form, "format")
        return "\n".join([f"start: {start}", f"TEXT: {_TEXT}", *self._rules])

    def _form(self, form: Mapping[str, Any], where: str) -> str:
        kind = form.get("type")
        make = _KINDS.get(kind) if isinstance(kind, str) else None
        if make is None:
            raise ValueError(f"{where}.type must be one of {', '.join(_KINDS)}; got {kind!r}")
        return make(self, form, where)

    def _text(self, text: Any, where: str) -> str:
        return " ".join(self._words(text, where))

    def _words(self, text: Any, where: str) -> list[str]:
        if not isinstance(text, str):
            raise ValueError(f"{where} must be text")
        parts, end = [], 0
        for match in self._split.finditer(text):
            if match[0]:
                parts += [text[end:match.start()], match[0]]
                end = match.end()
        return [f"<[{self._special[part]}]>" if part in self._special else quoted(part)
                for part in [*parts, text[end:]] if part]

    def _rule(self, body: str, attributes: str = "") -> str:
        name = f"part_{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name

    def _terminal(self, body: str) -> str:
        name = f"PART_{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def _text_to(self, end: list[str], text: str = "TEXT") -> str:
        """Text up to the first `end`, and with it."""
        number = next((i for i, word in enumerate(end) if word.startswith("<[")), None)
        if number is None:
            return self._rule(" ".join([text, *end]), "[lazy]")
        # No text spells a special token: what is in front of it belongs to the longest text.
        before = self._terminal(" ".join([text, *end[:number]])) if number else text
        return " ".join([before, *end[number:]])

    def _constant(self, form: Mapping[str, Any], where: str) -> str:
        return self._text(form.get("value"), f"{where}.value")

    def _schema(self, form: Mapping[str, Any], where: str) -> str:
        schema = form.get("json_schema", True)
        if schema is not True and not isinstance(schema, dict):
            raise ValueError(f"{where}.json_schema must be a JSON schema: an object, or true")
        check_schema(schema)
        options = json_options(is_compact=bool(form.get("disable_any_whitespace")),
                               white_space=form.get("whitespace_pattern"))
        return f"%json {json.dumps({**({} if schema is True else schema), 'x-guidance': options})}"

    def _regex(self, form: Mapping[str, Any], where: str) -> str:
        pattern = form.get("pattern")
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"{where}.pattern must be a regular expression")
        pattern = with_plain_digits(pattern)
        return "/" + re.sub(r"\\.|/", lambda m: r"\/" if m[0] == "/" else m[0], pattern).replace("\n", r"\n") + "/"

    def _nested(self, form: Mapping[str, Any], where: str) -> str:
        if not isinstance(form.get("grammar"), str):
            raise ValueError(f"{where}.grammar must be a grammar")
        return f"%lark {{\n{form['grammar']}\n}}"

    def _any_text(self, form: Mapping[str, Any], where: str) -> str:
        return "TEXT" if "pattern" not in form else self._regex(form, where)

    def _sequence(self, form: Mapping[str, Any], where: str) -> str:
        return " ".join(self._rule(self._form(part, place)) for part, place in self._elements(form, where))

    def _or(self, form: Mapping[str, Any], where: str) -> str:
        return f"({' | '.join(self._rule(self._form(part, place)) for part, place in self._elements(form, where))})"

    def _tag(self, form: Mapping[str, Any], where: str) -> str:
        return f"{self._text(form.get('begin'), f'{where}.begin')} {self._rest(form, where)}"

    def _rest(self, tag: Mapping[str, Any], where: str) -> str:
        """What follows the tag's beginning."""
        content = _object(tag.get("content"), f"{where}.content")
        end = self._words(tag.get("end", ""), f"{where}.end")
        if content.get("type") != "any_text" or not end:
            return " ".join([self._rule(self._form(content, f"{where}.content")), *end])
        if "max_tokens" in content:
            return self._bounded(content["max_tokens"], tag["end"], end, f"{where}.content")
        return self._text_to(end, self._any_text(content, f"{where}.content"))

    def _bounded(self, most: Any, end: str, words: list[str], where: str) -> str:
        """Text of so many tokens at most, and its end."""
        if isinstance(most, bool) or not isinstance(most, int) or not 0 <= most <= MAX_TOKENS:
            raise ValueError(f"{where}.max_tokens must be an integer from 0 to {MAX_TOKENS}")
        if not most:
            return " ".join(words)
        if (token := self._special.get(end, self._added.get(end))) is not None:
            others = ",".join(map(str, sorted({token, *self._special.values()})))
            return f"(<[^{others}]>){{0,{most}}} <[{token}]>"
        # Only a text that cannot hold the beginning of its end may be cut off at any token.
        text = self._rule(f"/[^\\x{{{ord(end[0]):x}}}]*/", f"[max_tokens={most}]")
        return " ".join([text, *words])

    def _triggered(self, form: Mapping[str, Any], where: str) -> str:
        place = f"{where}.triggers"
        triggers = [_text(trigger, place) for trigger in _listed(form.get("triggers"), place)]
        of_trigger: dict[str, list[str]] = {trigger: [] for trigger in triggers}
        for i, tag in enumerate(_listed(form.get("tags"), f"{where}.tags")):
            place = f"{where}.tags[{i}]"
            begin = _text(_object(tag, place).get("begin"), f"{place}.begin")
            trigger = next((trigger for trigger in triggers if begin.startswith(trigger)), None)
            if trigger is None:
                raise ValueError(f"{place}.begin begins with none of the triggers")
            more = self._text(begin[len(trigger):], place)
            of_trigger[trigger].append(self._rule(f"{more} {self._rest(tag, place)}"))
        calls = []
        for trigger, tags in of_trigger.items():
            if tags:
                text = self._text_to(self._words(trigger, f"{where}.triggers"))
                calls.append(self._rule(f"{text} ({' | '.join(tags)})"))
        if not calls:
            raise ValueError(f"{where}.tags must hold at least one tag")
        return self._times(form, f"({' | '.join(calls)})") + (" TEXT" if not form.get("stop_after_first") else "")

    def _separated(self, form: Mapping[str, Any], where: str) -> str:
        tags = [self._rule(self._tag(_object(tag, f"{where}.tags[{i}]"), f"{where}.tags[{i}]"))
                for i, tag in enumerate(_listed(form.get("tags"), f"{where}.tags"))]
        one = f"({' | '.join(tags)})"
        more = "" if form.get("stop_after_first") else f" ({self._text(form.get('separator'), where)} {one})*"
        return f"{one}{more}" if form.get("at_least_one") else f"({one}{more})?"

    def _some_of(self, form: Mapping[str, Any], where: str) -> str:
        """Each of the elements at most once, in their order; those that are not `optional` must come."""
        separator = self._text(form.get("separator", ""), f"{where}.separator")
        elements = self._elements(form, where)
        optional = form.get("optional")
        if not isinstance(optional, list) or len(optional) != len(elements):
            raise ValueError(f"{where}.optional must be a list of as many as there are elements")
        first = others = ""  # what may come from an element on, where none came before, and where some did
        for (part, place), may_lack in reversed(list(zip(elements, optional))):
            one = self._rule(self._form(part, place))
            begun = f"{one} {others}"
            first = self._rule(begun if not may_lack else f"{begun} | {first}" if first else f"({begun})?")
            others = self._rule(f"({separator} {one}){'?' if may_lack else ''} {others}")
        return first

    def _times(self, form: Mapping[str, Any], one: str) -> str:
        at_least_one = bool(form.get("at_least_one"))
        if form.get("stop_after_first"):
            return one if at_least_one else f"({one} | TEXT)"
        return one + ("+" if at_least_one else "*")

    def _elements(self, form: Mapping[str, Any], where: str) -> list[tuple[Mapping[str, Any], str]]:
        return [(_object(part, f"{where}.elements[{i}]"), f"{where}.elements[{i}]")
                for i, part in enumerate(_listed(form.get("elements"), f"{where}.elements"))]


_KINDS: dict[str, Callable[[_Grammar, Mapping[str, Any], str], str]] = {
    "const_string": _Grammar._constant,
    "json_schema": _Grammar._schema,
    "regex": _Grammar._regex,
    "grammar": _Grammar._nested,
    "any_text": _Grammar._any_text,
    "sequence": _Grammar._sequence,
    "or": _Grammar._or,
    "tag": _Grammar._tag,
    "triggered_tags": _Grammar._triggered,
    "tags_with_separator": _Grammar._separated,
    "some_of": _Grammar._some_of,
}


def _listed(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} must be a list that is not empty")
    return value


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where} must hold text")
    return value
