"""`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, repeated, with these tags or others."""

from __future__ import annotations

from quire.app.replies.markers import Markers
from quire.app.replies.tools.parser import Schemas
from quire.app.replies.tools.script import Script, Step


class TaggedJsonParser(Script):
    def __init__(self, schemas: Schemas, begin: str, end: str) -> None:
        super().__init__(schemas)
        self._begin = begin
        self._outside = Markers(begin)
        self._inside = Markers(end, begin) if end else None  # a model may leave the end out

    def read(self) -> Step[None]:
        while (marker := (yield from self.until_call(self._outside))):
            while marker == self._begin:
                self.keep(marker)
                yield from self.spaces()
                while (yield from self.starts(self._begin)):
                    yield from self.spaces()
                if not (yield from self._calls()):
                    self.no_call()
                    break
                marker = (yield from self.until(self._inside, self.drop)) if self._inside is not None else ""

    def _calls(self) -> Step[bool]:
        """One, or with an end several, also as a list or in a fence. False: there is none, and what was read is kept.
        """
        if self._inside is None:
            return (yield from self.json_call())
        yield from self.fence()
        yield from self.spaces()
        yield from self.starts("[")
        yield from self.spaces()
        if not (yield from self.json_call()):
            return False
        while True:
            yield from self.spaces()
            yield from self.starts(",", ";")
            if (yield from self.spaces()) != "{":
                return True
            self.keep()
            if not (yield from self.json_call()):
                self.forget()
                return True
