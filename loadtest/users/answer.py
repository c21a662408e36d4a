"""Read from a stream: what it said, when its tokens came, and whether it is what was asked for. Knows no Locust."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

Told = Callable[[str, float], None]  # of a latency its name and value in seconds

TTFT, ITL = "time to first token", "inter-token latency"


class Answer:
    """`wants` as Asked's; `tell` hears of each token's latency when it comes."""

    def __init__(self, wants: str, tell: Told, clock: Callable[[], float] = time.perf_counter) -> None:
        self._wants = wants
        self._tell = tell
        self._clock = clock
        self._at, self._begin = time.time(), clock()
        self._times: list[float] = []
        self._num_tokens: int | None = None
        self._finish = ""
        self.text = ""
        self._call = ""  # arguments of the tool that is called

    def read(self, lines: Iterable[bytes]) -> str | None:
        """Reads server-sent events to the end; what was wrong, if anything was."""
        for line in lines:
            if line == b"data: [DONE]":
                return self._problem() if self._times else "the stream brought no token"
            if line.startswith(b"data: "):
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    return str(chunk["error"])
                self._take(chunk)
        return "the stream ended without [DONE]"

    @property
    def seconds(self) -> float:
        """Since it was asked."""
        return self._clock() - self._begin

    def _take(self, chunk: dict[str, Any]) -> None:
        if chunk.get("usage"):
            self._num_tokens = int(chunk["usage"]["completion_tokens"])
        said = False
        for choice in chunk["choices"]:
            self._finish = choice.get("finish_reason") or self._finish
            said |= self._say(choice)
        if said:
            now = self._clock()
            last = self._times[-1] if self._times else None
            self._tell(TTFT if last is None else ITL, now - (self._begin if last is None else last))
            self._times.append(now)

    def _say(self, choice: dict[str, Any]) -> bool:
        delta = choice.get("delta") or {}
        text = delta.get("content") or choice.get("text") or ""
        self.text += text
        calls = delta.get("tool_calls") or []
        self._call += "".join(call.get("function", {}).get("arguments") or "" for call in calls)
        return bool(text or calls or delta.get("reasoning_content"))

    def _problem(self) -> str | None:
        """An answer that was cut at its most tokens need not be whole."""
        if self._finish == "length" or self._wants not in ("json", "call"):
            return None
        name, said = ("the reply", self.text) if self._wants == "json" else ("a call's arguments", self._call)
        try:
            return None if isinstance(json.loads(said), dict) else f"{name} is no JSON object"
        except ValueError:
            return f"{name} is not JSON"

    def measured(self, error: str | None) -> dict[str, Any]:
        """The fields of report.measured.Sent, `at` by the clock of the day."""
        if error:
            return {"at": self._at, "error": error}
        first, last, num_tokens = self._times[0], self._times[-1], self._num_tokens or len(self._times)
        return {"at": self._at, "ttft": first - self._begin, "num_tokens": num_tokens,
                "gaps": [after - before for before, after in itertools.pairwise(self._times)],
                "tpot": (last - first) / (num_tokens - 1) if num_tokens > 1 else None}
