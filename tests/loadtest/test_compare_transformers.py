from __future__ import annotations

import os
import subprocess
import sys

import pytest

from quire.engine.errors import ConfigError
from quire.loadtest import compare_transformers as compare


def _dies(num_threads: int) -> compare.Generate:
    raise SystemExit(f"cannot run on {num_threads} thread")


def _echoes(num_threads: int) -> compare.Generate:
    return lambda batch: sum(map(len, batch))


def test_a_contender_that_ends_is_named_as_the_cause():
    with pytest.raises(ConfigError, match="process ended"):
        compare.Offline(_dies, 1)


def test_a_contender_is_measured_in_a_process_of_its_own():
    contender = compare.Offline(_echoes, 1)
    assert contender.tokens_per_s([[1, 2], [3]]) > 0
    assert contender.resident_bytes() > 0
    contender.close()


def test_a_family_holds_children_and_their_children():
    nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    child = subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.readline()
    assert len(set(compare.family(os.getpid())) & set(compare.family(child.pid))) == 2
    child.communicate(b"\n")


def test_ratios_are_over_transformers(capsys):
    row = {"tok_s_16": 100.0, "tok_s_1": 10.0, "start_s": 5.0, "resident_mb": 1000}
    compare._print({"transformers": row, "quire": {**row, "tok_s_16": 150.0}})
    assert "150 (1.50x)" in capsys.readouterr().out


def test_progress_tells_the_time_that_is_left():
    assert compare._time_left(30.0, 1, 3) == "round 1 of 3 done, about 60 s to go"
    assert compare._time_left(90.0, 3, 3) == "round 3 of 3 done"
