"""Images over many steps of a scheduler without a model: every token of an image is computed from rows that hold it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from quire.engine.config import SchedulerConfig
from quire.engine.messages import Sampling
from quire.engine.plan import StepPlan, StepResult
from quire.engine.prompt_images import Image, PixelFile
from quire.engine.scheduling.request import Request
from quire.engine.scheduling.scheduler import Scheduler

ROWS = 24


def image(first: int, num_tokens: int, name: str) -> Image:
    file = cast(PixelFile, SimpleNamespace(path=name))
    return Image(first, first + num_tokens, name.encode(), (1, 2, 2 * num_tokens), file)


def scheduler(**changes: Any) -> Scheduler:
    return Scheduler(SchedulerConfig(**{"num_blocks": 24, "block_size": 4, "max_num_seqs": 4,
                                        "max_num_batched_tokens": 12, "max_model_len": 80, "encoder_tokens": ROWS,
                                        **changes}))


def request(key: str, num_tokens: int, images: list[Image], max_tokens: int = 3, salt: str = "") -> Request:
    tokens = [place % 5 for place in range(num_tokens)]
    for one in images:
        tokens[one.first:one.end] = [7] * one.num_tokens
    return Request(key, tokens, Sampling(max_tokens=max_tokens), 0, images=images, cache_salt=salt)


class Ranks:
    """Carries plans out on rows that remember which image's which token they hold."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int] | None] = [None] * ROWS
        self.images: dict[int, list[tuple[int, int]]] = {}  # of each row of the table
        self.num_encoded = 0

    def carry_out(self, plan: StepPlan, requests: dict[int, Request]) -> None:
        for new in plan.new_rows:
            self.images[new.row] = [(first, first + h * w // 4) for first, (_, h, w) in new.images]
        for encode in plan.encodes:
            count = encode.grid[2] // 2
            assert 0 <= encode.first_row <= ROWS - count
            self.rows[encode.first_row:encode.first_row + count] = [(encode.path, i) for i in range(count)]
            self.num_encoded += 1
        seen = set()
        for place, first, count, row in zip(plan.media_places, plan.media_firsts, plan.media_counts, plan.media_rows):
            mine = next(i for i in requests[plan.rows[place]].images if i.first <= first < i.end)
            held = self.rows[row:row + count]
            assert held == [(mine.file.path, first - mine.first + i) for i in range(count)]
            seen |= {(place, first + i) for i in range(count)}
        computed = {(place, position) for place, (row, start, n) in
                    enumerate(zip(plan.rows, plan.starts, plan.num_tokens)) for position in range(start, start + n)
                    if any(first <= position < end for first, end in self.images.get(row, ()))}
        assert seen == computed, "every token of an image, and no other, is told where its features are"


def run(s: Scheduler, ranks: Ranks | None, after_each: Callable[[int], None] = lambda step: None, *,
        ahead: bool = False) -> None:
    in_flight: list[StepPlan] = []
    steps = 0
    while s.has_work:
        steps += 1
        assert steps < 500, "nothing gets on"
        plan = s.plan()
        if plan is not None:
            if ranks is not None:
                ranks.carry_out(plan, {r.row: r for r in s._running.requests})
            in_flight.append(plan)
        if in_flight and (plan is None or len(in_flight) > ahead):
            oldest = in_flight.pop(0)
            s.commit(oldest, StepResult([9] * sum(oldest.samples)))
        after_each(steps)
    assert not any(held.num_holders for held in s._features._kept.values()), "somebody holds on to an image"


@st.composite
def prompts(draw: st.DrawFn) -> list[tuple[int, list[Image]]]:
    """Lengths and images; those of one name are of one size."""
    found = []
    for _ in range(draw(st.integers(1, 8))):
        place, images = 0, []
        for size in draw(st.lists(st.sampled_from([1, 3, 7, 15, ROWS]), max_size=3)):
            place += draw(st.integers(0, 5))
            if place + size > 70:
                break
            images.append(image(place, size, f"{size} {draw(st.integers(0, 2))}"))
            place += size
        found.append((place + draw(st.integers(0 if images else 1, 6)), images))
    return found


@settings(max_examples=60, deadline=None)
@given(prompts(), st.booleans(), st.booleans(), st.dictionaries(st.integers(1, 30), st.integers(0, 7)))
def test_all_are_served_from_rows_that_hold_their_images(cases: list[tuple[int, list[Image]]], caches: bool,
                                                         ahead: bool, aborts: dict[int, int]) -> None:
    s = scheduler(enable_prefix_caching=caches)
    for number, (num_tokens, images) in enumerate(cases):
        s.add([request(str(number), num_tokens, images)])

    def abort(step: int) -> None:
        if step in aborts:
            s.abort(str(aborts[step]))

    run(s, Ranks(), abort, ahead=ahead)


def test_equal_images_of_one_step_are_encoded_once_and_kept() -> None:
    s, ranks = scheduler(), Ranks()
    for key in "ab":
        s.add([request(key, 6, [image(0, 2, "x"), image(3, 2, "x")])])
    run(s, ranks)
    s.add([request("c", 9, [image(5, 2, "x")])])
    run(s, ranks)
    assert ranks.num_encoded == s.num_encoded_images == 1


def test_equal_images_under_other_salts_are_encoded_again() -> None:
    """How soon an answer comes tells nobody what another has sent."""
    s, ranks = scheduler(), Ranks()
    for key, salt in (("a", "one"), ("b", "other"), ("c", "one")):
        s.add([request(key, 6, [image(0, 2, "x")], salt=salt)])
        run(s, ranks)
    assert s.num_encoded_images == 2


def test_thousands_of_small_images_and_a_large_one_in_their_place_cost_what_each_costs() -> None:
    """A step that other requests wait for: four times the images are four times the work, not sixteen times."""
    few, many = num_lines_for_images(1024), num_lines_for_images(4096)
    assert many < 4.2 * few


def num_lines_for_images(num_small: int) -> int:
    """Lines of Python that run: the same on every machine, however busy it is."""
    rows = 4 * num_small
    s = scheduler(encoder_tokens=rows, max_num_batched_tokens=rows, num_blocks=3 * rows // 4, max_model_len=2 * rows)
    small = [image(4 * i, 4, f"small {i}") for i in range(num_small)]
    num_lines = 0

    def count(frame: object, event: str, argument: object) -> object:
        nonlocal num_lines
        num_lines += event == "line"  # also each time around a loop within one line
        return count

    for key, images in (("a", small), ("b", [image(0, 4, "one more")]), ("c", [image(0, rows, "large")])):
        s.add([request(key, images[-1].end, images, max_tokens=1)])
        sys.settrace(count)
        run(s, None)
        sys.settrace(None)
    assert s.num_encoded_images == num_small + 2
    return num_lines


def test_the_least_recently_used_goes_first() -> None:
    s, ranks = scheduler(enable_prefix_caching=False), Ranks()
    for key, name in (("a", "x"), ("b", "y"), ("c", "x"), ("d", "z")):  # of 10 rows each, and there are 24
        s.add([request(key, 12, [image(0, 10, name)])])
        run(s, ranks)
    assert {digest for _, digest in s._features._kept} == {b"x", b"z"}


def test_a_step_computes_only_up_to_an_image_for_which_there_is_no_room() -> None:
    s, ranks = scheduler(max_num_batched_tokens=30, num_blocks=60), Ranks()
    s.add([request("a", 40, [image(0, 15, "x"), image(15, 15, "y")])])
    s.add([request("b", 6, [image(2, 1, "z")])])
    plan = s.plan()
    assert plan is not None
    ranks.carry_out(plan, {r.row: r for r in s._running.requests})
    assert plan.num_tokens == [15, 2], "y has no room beside x, and z behind it is not encoded before it"
    assert [encode.path for encode in plan.encodes] == ["x"]
    s.commit(plan, StepResult([]))
    run(s, ranks)
