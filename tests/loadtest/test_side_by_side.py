"""`quire bench side-by-side`: the table, and two real runs of this tree beside itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quire.loadtest import side_by_side
from quire.loadtest.__main__ import main
from tests.loadtest.test_throughput import TINY


def test_a_figure_is_told_with_its_ratio_where_both_trees_have_it() -> None:
    before, after = {"m decode, s": [2.0, 4.0, 3.0], "old, s": [1.0]}, {"m decode, s": [1.5], "new, s": [1.0]}
    rows = side_by_side.table(before, after)
    assert rows[2:] == ["| m decode, s | 3 | 1.5 | 0.500 |"]


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--before", "/nowhere", "--model", "m"], ["--before", str(side_by_side.HERE)]):
        with pytest.raises(SystemExit):
            main(["side-by-side", *flags])
    told = capsys.readouterr().err
    assert "/nowhere is not a directory" in told and "give --model or --http" in told


@pytest.mark.slow
def test_a_tree_beside_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    flags = ["--flag=--device=cpu", "--flag=--cpu-threads=1", "--workload", "single", "--rounds", "1"]
    assert main(["side-by-side", "--before", str(side_by_side.HERE), "--model", str(tmp_path), *flags]) == 0
    figures = [row.split(" | ")[0] for row in capsys.readouterr().out.splitlines()[2:]]
    assert figures == [f"| {tmp_path.name} {name}" for name in ("start, s", "single ttft, ms", "single tpot, ms")]
