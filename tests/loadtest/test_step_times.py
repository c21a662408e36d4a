from __future__ import annotations

import json
from pathlib import Path

import pytest

from quire.engine.core import EngineCore
from quire.loadtest import workloads
from quire.loadtest.__main__ import main
from tests.loadtest.test_throughput import TINY


def test_the_parts_of_a_step_are_told_and_nothing_stays_timed(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "prompts", lambda name, vocab_size: ([[5, 6, 7], [8, 9]], [12, 12]))
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    step = EngineCore.step
    flags = ["--workload", "single", "--rounds", "1", "--max-model-len", "512"]
    assert main(["steps", "--model", str(tmp_path), *flags]) == 0
    assert EngineCore.step is step
    told = capsys.readouterr().out
    assert "single: " in told and ", 12 steps" in told
    assert [line.split()[0] for line in told.splitlines()[1:]] == ["plan", "launch", "wait", "commit", "step", "rest"]
