from __future__ import annotations

from structlog.testing import capture_logs

from quire.app.fetch_progress import FetchProgress
from quire.app.fetch_state import FetchState

GIB = 2**30


def fetched(*steps: tuple[float, int, int]) -> tuple[list[dict[str, object]], list[FetchState]]:
    """The log lines and states of a fetch that was at (seconds, bytes, all bytes)."""
    now = [0.0]
    states: list[FetchState] = []
    with capture_logs() as lines, FetchProgress("m", states.append, clock=lambda: now[0]) as progress:
        for now[0], here, total in steps:
            progress(here, total)
    return list(lines), states  # type: ignore[arg-type]


def test_lines_carry_bytes_and_the_speed_of_the_last_seconds() -> None:
    lines, states = fetched((0, 0, 0), (0.5, 0, 8 * GIB), *((s, s * GIB // 10, 8 * GIB) for s in range(1, 81)))
    assert [line["event"] for line in lines] == ["fetching"] * 8 + ["fetched"]
    assert [line["percent"] for line in lines[:2]] == [0.0, 13.7]
    assert abs(lines[4]["bytes_per_s"] - GIB / 10) < GIB / 100  # type: ignore[operator]
    assert lines[-1]["bytes"] == 8 * GIB
    assert states[40].phase == "fetching" and 35 < (states[40].eta_s or 0) < 45


def test_a_model_that_is_here_leaves_no_line() -> None:
    assert fetched((0, 0, 0), (0.3, GIB, GIB), (0.6, GIB, GIB))[0] == []


def test_a_hub_that_says_nothing_is_told_of_all_the_same() -> None:
    lines, states = fetched(*((second, 0, 0) for second in range(25)))
    assert [(line["event"], line["bytes"], line["total_bytes"]) for line in lines] == [("fetching", 0, None)] * 3
    assert states[-1].fraction == 0 and states[-1].eta_s is None
