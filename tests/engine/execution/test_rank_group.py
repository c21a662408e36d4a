"""Ranks that break while no step runs: they end by themselves, and their group hears why."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest

from engine.config import EngineArgs
from engine.core import EngineCore
from engine.errors import RankError
from tests.engine.models import tiny


def check_for(core: EngineCore, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        core.check()
        time.sleep(0.05)


def test_a_rank_that_broke_ends_by_itself_once_its_last_words_left(tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama", num_hidden_layers=2)
    core = EngineCore(EngineArgs.of({"model": str(tmp_path), "device": "cpu", "pipeline_parallel_size": 2,
                                     "max_model_len": 64, "cpu_threads": 1}), lambda *_: None)
    try:
        core.check()
        core._executor.launch(cast(Any, "not a plan"))
        with pytest.raises(RankError, match=r"(?s)rank \d broke:.*ValidationError"):
            check_for(core, 10)
    finally:
        core.close()
