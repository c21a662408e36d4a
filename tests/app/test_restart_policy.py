from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quire.app.restart_policy import RestartPolicy


def test_the_first_restart_is_at_once_then_they_come_later_and_later_and_end() -> None:
    policy = RestartPolicy(max_restarts=6, first_delay_s=0.5, max_delay_s=3)
    assert [policy.failed(t) for t in range(7)] == [0, 0.5, 1, 2, 3, 3, None]


def test_an_engine_that_served_well_is_replaced_at_once() -> None:
    policy = RestartPolicy(max_restarts=6)
    lives = [(0, 0), (1, 0), (20, 10), (21, 0), (22, 0)]
    assert [policy.failed(now, served_s) for now, served_s in lives] == [0, 0.5, 0, 0, 0.5]


def test_no_restarts_means_none() -> None:
    assert RestartPolicy(max_restarts=0).failed(0, served_s=1e6) is None


@given(st.lists(st.floats(301, 1e6), max_size=50), st.integers(1, 5))
def test_rare_crashes_never_add_up(pauses: list[float], max_restarts: int) -> None:
    policy, now = RestartPolicy(max_restarts=max_restarts, window_s=300), 0.0
    for pause in pauses:
        now += pause
        assert policy.failed(now, served_s=pause - 1) == 0


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=60), st.integers(0, 8))
def test_it_gives_up_exactly_when_too_many_failures_fall_into_the_window(
        lives: list[tuple[float, float]], max_restarts: int) -> None:
    policy, now, failures = RestartPolicy(max_restarts=max_restarts, window_s=100), 0.0, []
    for pause, served_s in lives:
        now += pause
        failures.append(now)
        delay_s = policy.failed(now, served_s)
        assert (delay_s is None) == (sum(now - t <= 100 for t in failures) > max_restarts)
        if delay_s is None:
            return
        assert 0 <= delay_s <= policy.max_delay_s
