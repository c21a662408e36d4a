"""Llama 3.1 to 3.3: a reply that begins with a JSON object calls; several are parted by `;`, a comma or
nothing. `<|python_tag|>` may stand before it, and then also after a text."""

from __future__ import annotations

from quire.app.replies.markers import Markers
from quire.app.replies.tools.script import Script, Step

TAG = "<|python_tag|>"
_TAG = Markers(TAG)


class Llama3Parser(Script):
    def read(self) -> Step[None]:
        self.keep()
        yield from self.spaces()
        mark = yield from self.starts(TAG)
        while True:
            if mark:
                self.keep(mark)
                while (yield from self.starts(TAG)):
                    pass
            if (yield from self.spaces()) == "{":
                yield from self._calls(is_marked=bool(mark))
            else:
                self.no_call()
            mark = yield from self.until_call(_TAG)
            if not mark:
                return

    def _calls(self, *, is_marked: bool) -> Step[None]:
        while (yield from self.json_call(is_marked=is_marked)):
            self.keep()
            yield from self.spaces()
            yield from self.starts(";", ",")
            found = yield from self.spaces()
            if not found:  # the end
                self.forget()
                return
            if found != "{":
                break
        self.no_call()
