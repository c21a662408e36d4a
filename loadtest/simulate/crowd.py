"""Requests that decode and do nothing else, counted together: a token each at every step costs no work for each.

Refuses to know blocks and queues (`coasting`, the only caller).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from quire.engine.kv_groups import Window
from quire.engine.scheduling.request import Request


class Decodes(NamedTuple):
    """What a step decodes beside the rows of its plan."""

    num_tokens: int
    read: dict[Window, int]  # tokens whose K and V a layer of that window reads


NO_DECODES = Decodes(0, {})


class Member(NamedTuple):
    request: Request
    ahead: int  # the position that it computes, less the step's number
    passed: tuple[int, ...]  # the windows that are shorter than what it has


class Crowd:
    def __init__(self, windows: Iterable[Window]) -> None:
        self._windows = sorted({window for window in windows if window is not None})
        self._wakes: dict[int, list[Member]] = {}  # by step; those that have left since are among them
        self.members: dict[Request, Member] = {}
        self.rows: set[int] = set()
        # Sums over the members; of a window, over those that have not passed it.
        self._ahead = 0
        self._ahead_within = dict.fromkeys(self._windows, 0)
        self._num_passed = dict.fromkeys(self._windows, 0)

    def __len__(self) -> int:
        return len(self.members)

    def due(self, step: int) -> list[Member]:
        """Those that something happens to at that step, which must be asked for once, in turn."""
        return [member for member in self._wakes.pop(step, ()) if self.members.get(member.request) is member]

    def join(self, request: Request, step: int) -> None:
        """The request decodes at that step and the following ones, and is due when it needs a block, when its last
        token is to be computed, or when it passes a window."""
        start = request.num_computed
        steps = min(request.num_slots - start, request.max_total - 2 - start)
        passed: tuple[int, ...] = ()
        for window in self._windows:
            if start + 1 >= window:
                passed = (*passed, window)
            else:
                steps = min(steps, window - 1 - start)
        assert steps > 0, request
        member = self.members[request] = Member(request, start - step, passed)
        self.rows.add(request.row)
        self._wakes.setdefault(step + steps, []).append(member)
        self._count(member, 1)

    def stay(self, member: Member, step: int) -> None:
        """It is due again at that step, and changes nothing else until then."""
        self._wakes.setdefault(step, []).append(member)

    def leave(self, member: Member) -> None:
        del self.members[member.request]
        self.rows.discard(member.request.row)
        self._count(member, -1)

    def _count(self, member: Member, sign: int) -> None:
        self._ahead += sign * member.ahead
        for window in self._windows:
            if window in member.passed:
                self._num_passed[window] += sign
            else:
                self._ahead_within[window] += sign * member.ahead

    def decodes(self, step: int) -> Decodes:
        count = len(self.members)
        read: dict[Window, int] = {None: self._ahead + count * (step + 1)}
        for window in self._windows:
            num_passed = self._num_passed[window]
            read[window] = self._ahead_within[window] + (count - num_passed) * (step + 1) + num_passed * window
        return Decodes(count, read)
