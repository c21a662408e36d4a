"""`<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`: GLM-4.5 and 4.6 with line breaks,
4.7 without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.app.replies.markers import Markers
from quire.app.replies.tools.hermes import BEGIN, END
from quire.app.replies.tools.parameter_script import ParameterScript
from quire.app.replies.tools.parameters import Markup, parameters
from quire.app.replies.tools.parser import Form
from quire.app.replies.tools.script import KEY, Step

_KEY, _KEY_END = "<arg_key>", "</arg_key>"
_VALUE, _VALUE_END = "<arg_value>", "</arg_value>"
_OUTSIDE = Markers(BEGIN)
_INSIDE = Markers(_KEY, END, BEGIN)
_ENDS = Markers(_VALUE_END)
SHOWN = (BEGIN, END, _KEY, _KEY_END, _VALUE, _VALUE_END)


class GlmParser(ParameterScript):
    def read(self) -> Step[None]:
        while (mark := (yield from self.until_call(_OUTSIDE))):
            while mark == BEGIN:
                self.keep(mark)
                yield from self.spaces()
                while (yield from self.starts(BEGIN)):
                    yield from self.spaces()
                name = yield from self.word()
                yield from self.spaces()
                mark = (yield from self.starts(_KEY, END)) if name else ""
                if not mark:
                    self.no_call()
                    break
                self.open_call(name)
                mark = yield from self._parameters(mark)

    def _parameters(self, mark: str) -> Step[str]:
        while mark == _KEY:
            key = yield from self.word(KEY)
            yield from self.starts(_KEY_END)
            yield from self.spaces()
            if not key or not (yield from self.starts(_VALUE)):
                mark = yield from self.until(_INSIDE, self.drop)
                continue
            if not (yield from self.value(key, _ENDS)):
                return ""
            mark = yield from self.until(_INSIDE, self.drop)
        self.close_call()
        return mark


def tag(gap: str, name: str, schema: Mapping[str, Any]) -> Form:
    """`gap`: the line breaks, or none."""
    markup = Markup(lambda key, is_text: f"{_KEY}{key}{_KEY_END}{gap}{_VALUE}", end=_VALUE_END, after=gap)
    return {"begin": f"{BEGIN}{name}{gap}", "content": parameters(schema, markup.form), "end": END}
