from __future__ import annotations

from quire.app.worker_deaths import MAX_DEATHS, WINDOW_S, WorkerDeaths


def test_deaths_within_a_minute_add_up_and_those_further_apart_never_do() -> None:
    now = 0.0
    deaths = WorkerDeaths(num_workers=2, clock=lambda: now)
    assert not any(deaths.too_many() for _ in range(MAX_DEATHS + 2)), "all at once, and each a few times"
    assert deaths.too_many()
    rare = WorkerDeaths(num_workers=1, clock=lambda: now)
    for _ in range(1000):
        now += WINDOW_S / MAX_DEATHS
        assert not rare.too_many()
