from __future__ import annotations

import json
from pathlib import Path

import pytest

from quire.loadtest import features
from quire.loadtest.__main__ import main
from tests.loadtest.test_throughput import TINY


def test_a_table_has_milliseconds_and_the_ratio_to_plain_sampling() -> None:
    rows = features.table({"greedy": {1: (2.0, 3.0), 64: (4.0, 4.0)}, "one row: greedy": {64: (4.0, 5.0)}}, [1, 64])
    assert rows == ["| feature | 1 rows | 64 rows |", "|---|---|---|", "| greedy | 3.000 (1.500) | 4.000 (1.000) |",
                    "| one row: greedy |  | 5.000 (1.250) |"]


def test_features_are_measured_beside_plain_sampling(
        tmp_path: Path, smollm2_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
        ) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"vocab_size": 49152}))
    monkeypatch.setattr(features, "LONG", 12)
    code = main(["features", "--model", str(tmp_path), "--tokenizer", str(smollm2_path), "--batch", "4", "--feature",
                 "a JSON schema each", "--feature", "min_tokens", "--feature", "beams of 4", "--max-model-len", "128",
                 "--cpu-threads", "1"])
    assert code == 0
    told = capsys.readouterr().out
    for name in ("min_tokens", "a JSON schema each", "one row: a JSON schema each", "beams of 4"):
        assert f"    4 rows, {name}: " in told and f"| {name} | " in told
    assert "greedy" not in told
