"""A mark, and a JSON list of calls: `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, with this mark or others.

A call without the list around it is taken too.
"""

from __future__ import annotations

from quire.app.replies.markers import Markers
from quire.app.replies.tools.parser import Schemas
from quire.app.replies.tools.script import Script, Step


class JsonListParser(Script):
    def __init__(self, schemas: Schemas, *marks: str, end: str = "") -> None:
        """`end`: what may follow the list."""
        super().__init__(schemas)
        self._marks, self._end = marks, end
        self._outside = Markers(*marks)

    def read(self) -> Step[None]:
        while (mark := (yield from self.until_call(self._outside))):
            self.keep(mark)
            yield from self.spaces()
            while (yield from self.starts(*self._marks)):
                yield from self.spaces()
            yield from self.calls()
            if self._end:
                yield from self.next_of(self._end)

    def calls(self) -> Step[None]:
        is_list = bool((yield from self.starts("[")))
        while True:
            yield from self.spaces()
            if not (yield from self.json_call()):
                self.no_call()
                return
            if not is_list or (found := (yield from self.next_of("]", ","))) != ",":
                return
            self.keep(found)
