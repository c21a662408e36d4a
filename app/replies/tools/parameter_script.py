"""What parsers share whose calls have arguments one by one, without JSON's quotes. They become one JSON object."""

from __future__ import annotations

from quire.app.replies.json_text import JsonEnd, quoted
from quire.app.replies.markers import Markers
from quire.app.replies.tools.parameters import TEXT, of_parameter, types, value_as_json
from quire.app.replies.tools.parser import Schemas
from quire.app.replies.tools.script import Script, Step

_NO_TEXT = frozenset({"object", "array"})


class ParameterScript(Script):
    def __init__(self, schemas: Schemas) -> None:
        super().__init__(schemas)
        self._name = ""
        self._before = ""  # what stands in front of the next argument

    def open_call(self, name: str) -> None:
        self.forget()
        self.call(name)
        self._name, self._before = name, "{"

    def close_call(self) -> None:
        self.argue("}" if self._before == ", " else "{}")

    def value(self, key: str, ends: Markers, is_text: bool | None = None, *, gap: str = "") -> Step[str]:
        """Reads a value up to one of the ends, which it returns, and gives it out: text as it comes, anything else when
        it is whole. A `gap` at its beginning and at its end is none of it. `is_text` None: the tool's schema tells.
        """
        root = self.schemas.get(self._name, {})
        schema = of_parameter(key, root) or {}
        if gap:
            yield from self.starts(gap)
        begin, self._before = f"{self._before}{quoted(key)}: ", ", "
        allowed = types(schema, root) if is_text is None else TEXT if is_text else _NO_TEXT
        if allowed == TEXT:
            return (yield from self._text_value(begin, ends, gap))
        self.keep()
        is_json = (yield from self.spaces()) in ("{", "[") and allowed is not None and "string" not in allowed
        json = JsonEnd() if is_json else None
        parts = [self.kept()]

        def seen(text: str) -> None:
            nonlocal json
            parts.append(text)
            if json is not None and json.find(text) is not None:
                json = None  # what follows it is no part of a string

        while (end := (yield from self.until(ends, seen))) and json is not None and json.is_in_text:
            seen(end)  # it is a part of a string
        if end:
            text = "".join(parts).removesuffix(gap)
            self.argue(begin + (value_as_json(text, schema, root) if is_text is None else
                                value_as_json(text, {}, {})))
        return end

    def _text_value(self, begin: str, ends: Markers, gap: str) -> Step[str]:
        held = ""  # a gap, if the value ends with it

        def passed_on(text: str) -> None:
            nonlocal held
            text = held + text
            held = gap if gap and text.endswith(gap) else ""
            self.argue(quoted(text.removesuffix(held))[1:-1])

        self.argue(f'{begin}"')
        end = yield from self.until(ends, passed_on)
        if end:
            self.argue('"')
        return end
