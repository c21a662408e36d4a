"""The search for the saturation point, against a server of a few lines: a queue of so many places, and a time each."""

from __future__ import annotations

import json
import random
from argparse import Namespace
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.loadtest import sweep
from quire.loadtest.report.measured import Load, Run, Sent
from quire.loadtest.sweep import Goal, Level, saturate, saturation

GOAL = Goal(ttft_s=1.0, tpot_s=0.05)


def served(rate: float, number: int, capacity: float, places: int = 10**9, loss: float = 0.0) -> Run:
    """One request after the other, each for 1/`capacity` seconds; `loss`: what refusing a request takes of that."""
    rng, now, free_at, sent = random.Random(0), 0.0, 0.0, []
    ends: deque[float] = deque()
    for _ in range(number):
        now += rng.expovariate(rate)
        while ends and ends[0] <= now:
            ends.popleft()
        if len(ends) > places:
            free_at += loss / capacity
            sent.append(Sent(error="503 The queue is full", at=now))
            continue
        free_at = max(now, free_at) + 1 / capacity
        ends.append(free_at)
        sent.append(Sent(at=now, ttft=free_at - now, num_tokens=2, gaps=[0.01], tpot=0.01))
    return Run(Load(f"{rate:g} requests/s", rate), max([now, free_at]), sent)


def level(rate: float, capacity: float, **server: Any) -> Level:
    return Level(rate, served(rate, max(30, round(20 * rate)), capacity, **server), GOAL)


@settings(max_examples=8, deadline=None)
@given(capacity=st.floats(10, 30), first=st.floats(0.1, 1.0))
def test_the_saturation_point_is_near_what_the_server_can_do(capacity: float, first: float) -> None:
    levels = saturate(lambda rate: level(rate, capacity), first, served=0.9, refine=4)
    found = saturation(levels, 0.9)
    assert 0.7 * capacity < found < 1.3 * capacity
    rates = [one.rate for one in levels]
    assert len(set(rates)) == len(rates) <= 16 + 4
    assert all(one.share >= 0.9 for one in levels if one.rate <= found)


def test_where_nothing_is_served_well_there_is_none() -> None:
    levels = saturate(lambda rate: level(rate, 0.5), 1.0, served=0.9, refine=3)
    assert [one.rate for one in levels] == [1.0] and saturation(levels, 0.9) == 0.0


def test_goodput_is_of_what_was_served_well_over_the_time_that_it_took_and_was_offered() -> None:
    run = Run(Load("x", 1.0), 99.0, [
        Sent(at=1.0, ttft=0.5, num_tokens=2, gaps=[0.04], tpot=0.04), Sent(at=4.0, ttft=0.96, gaps=[0.04], tpot=0.04),
        Sent(at=4.5, ttft=1.1, tpot=0.01), Sent(at=4.6, ttft=0.1, tpot=0.06), Sent(at=4.7, error="503 full"),
        Sent(at=4.7, error="500 broken")])
    found = Level(1.0, run, GOAL)
    assert (len(found.good), found.share, found.goodput) == (2, 2 / 6, pytest.approx(2 / 4))
    assert (found.num_refused, found.num_broken) == (1, 1)
    assert found.summary()["ttft_ms"] == {"p50": 960.0, "p99": 1100.0}
    found.run.sent.append(Sent(at=9.0, error="503 full"))
    assert found.goodput == pytest.approx(2 / 8), "to the last that was sent"
    nothing = Level(1.0, Run(Load("x", 1.0), 9.0, [Sent(error="503 full")]), GOAL)
    assert (nothing.goodput, nothing.summary()["ttft_ms"]) == (0.0, None)


def swept(monkeypatch: pytest.MonkeyPatch, capsys: Any, html: Path, **server: Any) -> tuple[int, dict[str, Any], str]:
    def measure(args: Namespace, rate: float, ids: list[list[int]], output_lens: list[int]) -> Run:
        assert output_lens == [4] * len(ids) and {len(prompt) for prompt in ids} == {8}
        return served(rate, len(ids), 10.0, **server)

    monkeypatch.setattr(sweep, "measure", measure)
    code = sweep.main(["--model", "m", "--lengths", "8:4", "--overload", "5", "--refine", "2", "--seconds", "20",
                       "--html", str(html)])
    told = capsys.readouterr()
    return code, json.loads(told.out.splitlines()[-1]), told.err


def test_a_server_that_refuses_in_time_keeps_its_goodput_far_beyond_its_capacity(
        monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    code, told, _ = swept(monkeypatch, capsys, tmp_path / "sweep.html", places=5)
    assert code == 0 and told["goodput_kept"] > 0.95 and told["ttft_p99_ms"] <= 601
    assert 6 < told["saturation"] < 12
    page = (tmp_path / "sweep.html").read_text()
    assert page.count("saturation point:") == 5 and "saturation point, requests/s" in page


@pytest.mark.parametrize("server", [{}, {"places": 5, "loss": 0.3}], ids=["queues", "refuses slowly"])
def test_one_that_queues_without_end_or_is_busy_refusing_does_not(
        server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    code, told, error = swept(monkeypatch, capsys, tmp_path / "sweep.html", **server)
    assert code == 1 and told["goodput_kept"] < 0.95
    assert f"goodput is {told['goodput_kept']:.1%} of its peak" in error and "(--loss)" in error


@pytest.mark.parametrize("flags", [["--lengths", "8"], ["--lengths", "0:4"], ["--rate", "0"], ["--served", "1.5"],
                                   ["--overload", "x"]])
def test_flags_that_make_no_sense_are_refused_by_name(flags: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        sweep.main(["--model", "m", *flags])
    assert flags[0] in capsys.readouterr().err
