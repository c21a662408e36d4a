"""Ranks that break while no step runs: they end by themselves, and their group hears why."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path
from typing import Any, cast

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from quire.engine.assembly import assemble
from quire.engine.config import EngineArgs
from quire.engine.core import EngineCore
from quire.engine.errors import RankError
from quire.engine.execution import rank_group
from tests.engine.models import tiny


def check_for(core: EngineCore, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        core.check()
        time.sleep(0.05)


def test_a_rank_that_broke_ends_by_itself_once_its_last_words_left(tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama", num_hidden_layers=2)
    core = assemble(EngineArgs.of({"model": str(tmp_path), "device": "cpu", "pipeline_parallel_size": 2,
                                     "max_model_len": 64, "cpu_threads": 1}), lambda *_: None)
    try:
        core.check()
        core._executor.launch(cast(Any, "not a plan"))
        with pytest.raises(RankError, match=r"(?s)rank \d broke:.*ValidationError"):
            check_for(core, 10)
    finally:
        core.close()


def test_ranks_leave_when_their_core_says_so_and_not_when_everybody_is_told_to_end(tmp_path: Path) -> None:
    """As a service manager may tell all processes of a service at once."""
    tiny.write(tmp_path, "llama", num_hidden_layers=2)
    core = assemble(EngineArgs.of({"model": str(tmp_path), "device": "cpu", "pipeline_parallel_size": 2,
                                     "max_model_len": 64, "cpu_threads": 1}), lambda *_: None)
    processes = cast(Any, core._executor)._placement._processes
    try:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        check_for(core, 0.5)
    finally:
        core.close()
    assert all(process.returncode is not None for process in processes)


def test_the_ranks_meeting_place_is_open_at_its_own_address_alone() -> None:
    meeting = rank_group._meeting("127.0.0.1")
    TCPStore("127.0.0.1", meeting.port, is_master=False).set("a", "b")
    assert meeting.get("a") == b"b"
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", meeting.port), timeout=5):
        pass
