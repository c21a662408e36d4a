"""Calls between marks of their own, in a section between two more: DeepSeek's and Kimi's."""

from __future__ import annotations

from abc import abstractmethod

from quire.app.replies.markers import Markers
from quire.app.replies.tools.parser import Schemas
from quire.app.replies.tools.script import Script, Step


class SectionParser(Script):
    def __init__(self, schemas: Schemas, section: str, section_end: str, call: str, call_end: str) -> None:
        super().__init__(schemas)
        self._section, self._section_end, self._call, self._call_end = section, section_end, call, call_end
        self._outside = Markers(section, call)  # a model may leave the section out, and ends
        self._inside = Markers(call_end, call, section_end, section)

    @abstractmethod
    def one_call(self) -> Step[bool]:
        """Reads what follows a call's mark, up to its end; False: it is no call, and what was read is kept."""

    def read(self) -> Step[None]:
        while (mark := (yield from self.until_call(self._outside))):
            self.keep(mark)
            has_call = False
            while mark and mark != self._section_end:
                if mark != self._call:
                    after_call = has_call and mark == self._call_end
                    if not after_call:
                        yield from self.spaces()
                    mark = yield from (self.next_of if after_call else self.starts)(
                        self._call, self._section, self._section_end)
                    continue
                if has_call:
                    self.keep(mark)
                yield from self.spaces()
                while (yield from self.starts(self._call)):
                    yield from self.spaces()
                has_call = yield from self.one_call()
                if not has_call:
                    break
                mark = yield from self.until(self._inside, self.drop)
            if not has_call:
                self.no_call()
