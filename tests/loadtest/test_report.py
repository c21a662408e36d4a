"""The report of a load test: its axes, its figures, and a page that needs nothing and shows errors as text."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.loadtest.report.axis import linear, logarithmic, round_down, round_up
from quire.loadtest.report.measured import Load, Run, Sent, percentile
from quire.loadtest.report.page import html
from quire.loadtest.report.stages import Crowd, stages, whole
from quire.loadtest.report.svg import HEIGHT, WIDTH, Series, histogram, line_plot

numbers = st.floats(1e-6, 1e9)


@given(numbers)
def test_round_values_are_1_2_or_5_and_near(value: float) -> None:
    for bound in (round_up(value), round_down(value)):
        assert f"{bound:e}"[0] in "125" and 0.399 <= bound / value <= 2.501
    assert round_down(value) <= value * 1.000001 and round_up(value) >= value * 0.999999


@given(st.lists(numbers, min_size=1, max_size=20))
def test_axes_hold_all_values_in_order_and_have_a_readable_number_of_ticks(values: list[float]) -> None:
    for axis in (linear(values), logarithmic(values)):
        assert all(0 <= axis.place(value) <= 1 for value in values)
        assert axis.place(min(values)) <= axis.place(max(values))
        assert max(values) <= axis.high * 1.000001 and min(values) >= axis.low * 0.999999
        assert 2 <= len(axis.ticks) <= 17 and axis.ticks == sorted(set(axis.ticks))


def test_without_values_there_is_an_axis_too() -> None:
    assert linear([]).ticks == linear([0.0]).ticks == [0.0, 1.0]
    assert logarithmic([]).ticks == [0.5, 1.0, 2.0] == logarithmic([0.0, 1.0]).ticks


def run_of(sent: list[Sent], rate: float = 2.0, seconds: float = 4.0) -> Run:
    return Run(Load(f"{rate:g} requests/s", rate) if rate else Load("all at once"), seconds, sent)


RUN = run_of([Sent(at=0.0, ttft=0.5, gaps=[0.25, 0.75], num_tokens=3, tpot=0.5),
              Sent(at=3.0, ttft=0.1, gaps=[0.2], num_tokens=2, tpot=0.2), Sent(error="503 <script>alert(1)</script>")])


def test_latencies_stand_where_they_ended() -> None:
    assert RUN.latencies["time to first token"] == [(0.5, 500.0), (3.1, 100.0)]
    assert RUN.latencies["inter-token latency"] == [(0.75, 250.0), (1.5, 750.0), (pytest.approx(3.3), 200.0)]
    assert RUN.latencies["end to end"] == [(1.5, 1500.0), (pytest.approx(3.3), pytest.approx(300.0))]


def test_bins_of_time_have_their_values_and_gaps_are_gaps() -> None:
    assert RUN.bin_s == 0.1
    p50 = dict(RUN.over_time("time to first token")["p50"])
    assert {round(when, 2): value for when, value in p50.items() if not math.isnan(value)} == {0.55: 500.0, 3.15: 100.0}
    assert len(p50) == 32
    assert sum(rate * RUN.bin_s for _, rate in RUN.tokens_per_s()) == pytest.approx(5)
    in_flight = {round(when, 2): num for when, num in RUN.in_flight()}
    assert (in_flight[0.05], in_flight[1.45], in_flight[1.55], in_flight[3.15], in_flight[3.95]) == (1, 1, 0, 1, 0)


def test_percentiles_are_by_rank() -> None:
    assert [percentile(range(1, 101), q) for q in (0.5, 0.9, 0.99)] == [51, 91, 100]
    assert math.isnan(percentile([], 0.5))


def crowds(*numbers: int, going: int = -1) -> list[Crowd]:
    """A look each second from 100 on; at number `going` of them some users are still to come."""
    return [Crowd(100.0 + i, number, is_whole=i != going) for i, number in enumerate(numbers)]


# Sent at 100, 102 and 104.5: a chunk after half a second, and one each second from then on, of two tokens each.
ASKED = [Sent(at=at, ttft=0.5, gaps=[1.0] * 3, num_tokens=8, tpot=0.43) for at in (100.0, 102.0, 104.5)]


def test_a_part_is_the_time_in_which_the_users_stood_still() -> None:
    parts = stages([*ASKED, Sent(at=103.0, error="gone")], crowds(1, 1, 1, 2, 4, 4, 4, going=3))
    assert [(run.load.name, run.load.value, run.seconds) for run in parts] == [("1 user", 1, 3.0), ("4 users", 4, 2.0)]
    assert [[sent.at for sent in run.good] for run in parts] == [[0.0, 2.0], [0.5]]
    assert [run.num_failed for run in parts] == [0, 0], "one failed while users came"
    # Chunks at 100.5, 101.5, 102.5, 103.5; 102.5 to 105.5; 105 to 108
    assert [run.output_per_s for run in parts] == [(3 + 1) * 2 / 3, (2 + 1) * 2 / 2]
    assert [run.answered_per_s for run in parts] == [0, 1 / 2]


def test_the_whole_begins_with_the_first_look_and_ends_with_the_last_token() -> None:
    run = whole(ASKED, crowds(1, 2, 2))
    assert (run.seconds, run.output_per_s, run.load.value) == (8.0, 3.0, None)
    assert [sent.at for sent in run.sent] == [0.0, 2.0, 4.5] and run.users == [(0, 1), (1, 2), (2, 2)]


def test_without_users_who_stood_still_there_is_no_part() -> None:
    for looks in ([], crowds(0, 0), crowds(1, 2, 3), crowds(1, 1, going=0)):
        assert stages(ASKED, looks)[1:] == []
    assert stages([], crowds(1, 1, 1)) == []


class Page(HTMLParser):
    """The tags and attributes of a page, each opened tag closed."""

    VOID = frozenset({"meta"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_asks_nobody_for_anything_and_shows_errors_as_text() -> None:
    text = html([RUN, run_of(RUN.sent, 8.0), run_of(RUN.sent, 0.0)], {"model": "<i>m</i>", "server": "http://h"})
    page = Page(text)
    assert not {"script", "img", "link", "iframe", "i", "a"} & set(page.tags)
    assert not {"src", "href", "onload", "onclick"} & page.attributes
    assert "url(" not in text and "@import" not in text and "default-src 'none'" in text
    assert "Load test of <i>m</i>" in page.text and "1 × 503 <script>alert(1)</script>" in page.text
    # 5 plots by load; of each run 6, and one of failures
    plots = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(plots) == 5 + 3 * 7
    for plot in plots:
        root = ElementTree.fromstring(plot)
        for dot in root.iter("circle"):
            assert 0 <= float(dot.attrib["cx"]) <= WIDTH and 0 <= float(dot.attrib["cy"]) <= HEIGHT
    for name in ("TTFT", "ITL", "TPOT", "p50, p90, p99"):
        assert name in page.text


def test_a_test_by_users_is_told_of_as_a_whole_and_by_their_number() -> None:
    looks = crowds(1, 1, 1, 4, 4, 4)
    page = Page(text := html(stages(ASKED, looks), {"server": "http://h"}, "Locust", whole(ASKED, looks)))
    assert text.count("<svg") == 5 + 6 and text.count("<h2>") == 4
    for said in ("Load test of http://h", "By users", "1 user", "4 users", "Whole run", "Users and requests in flight",
                 "by Locust, quire "):
        assert said in page.text
    assert "offered" not in page.text


def test_a_run_in_which_all_failed_has_a_page_too() -> None:
    page = Page(html([run_of([Sent(error="gone")])], {}))
    assert "Nothing was measured." in page.text and "1 of 1 requests failed:" in page.text


def test_a_line_is_broken_where_nothing_was_measured() -> None:
    plot = line_plot("x", "y", [Series("s", [(0, 1), (1, 2), (2, math.nan), (3, 1)], "c0")])
    assert plot.count("<polyline") == 2 and plot.count("<circle") == 3


@given(st.lists(numbers, min_size=1, max_size=200))
def test_the_bars_of_a_histogram_are_all_of_the_values(values: list[float]) -> None:
    shares = [float(share) for share in re.findall(r": ([0-9.,]+) %</title>", histogram("ms", values, {}))]
    assert sum(shares) == pytest.approx(100, rel=0.02)
