"""An engine on a CPU gives back what its steps freed."""

from __future__ import annotations

import pytest

from quire.engine.execution import freed_memory
from quire.engine.execution.freed_memory import EVERY_S, FreedMemory


def test_it_gives_back_every_so_often_and_not_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    now, given_back = [100.0], []
    monkeypatch.setattr(freed_memory, "return_freed_memory", lambda: given_back.append(now[0]))
    freed = FreedMemory(lambda: now[0])
    for now[0] in (101, 100 + EVERY_S, 101 + EVERY_S, 500, 501):
        freed.give_back_at_times()
    assert given_back == [100 + EVERY_S, 500]
