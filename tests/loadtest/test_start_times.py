from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from quire.loadtest.__main__ import main
from tests.loadtest.test_throughput import TINY


def test_the_phases_of_a_start_add_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert main(["start", "--model", str(tmp_path), "--starts", "1", "--device", "cpu", "--max-model-len", "512"]) == 0
    told = re.fullmatch(r"start 1: ([\d.]+) s; (.*)\n", capsys.readouterr().out)
    assert told
    phases = {phase: float(seconds) for phase, _, seconds in (part.rpartition(" ") for part in told[2].split(", "))}
    assert {"python", "torch", "placing", "loading weights"} <= set(phases), phases
    assert sum(phases.values()) == pytest.approx(float(told[1]), abs=0.1 * len(phases))
