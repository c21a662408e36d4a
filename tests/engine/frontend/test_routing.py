"""Where requests go among several engines, whatever loads, prompts and keys there are."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.engine.frontend import routing
from quire.engine.frontend.routing import ENDS, SAMPLE_TOKENS, Load, Router, is_limited
from quire.engine.messages import KeyLimits, Status

NUM = 3
loads_of = st.lists(st.integers(0, 10**6), min_size=NUM, max_size=NUM)
ready_of = st.lists(st.integers(0, NUM - 1), unique=True)
# Prompts that share beginnings: of a few families, each cut somewhere, with something of their own at the end.
prompts = st.builds(lambda family, length, tail: [*range(family * 10**5, family * 10**5 + length), *tail],
                    st.integers(0, 2), st.integers(0, 1500), st.lists(st.integers(0, 100), max_size=100))


def test_beginnings_end_further_and_further_apart() -> None:
    assert ENDS[0] == 64
    assert all(64 <= b - a <= max(64, a // 4) for a, b in itertools.pairwise(ENDS))


@given(st.integers(0, 5), st.lists(st.tuples(prompts, loads_of, ready_of), max_size=30))
def test_a_ready_engine_is_chosen_and_no_overloaded_one(first: int,
                                                        requests: list[tuple[list[int], list[int], list[int]]]) -> None:
    router = Router(NUM, first)
    for prompt, loads, ready in requests:
        chosen = router.choose(prompt, "", loads, ready)
        candidates = ready or range(NUM)
        assert chosen in candidates
        assert loads[chosen] <= 1.25 * min(loads[place] for place in candidates) + min(len(prompt), ENDS[-1])


@given(prompts, st.lists(st.integers(0, 100), max_size=200), st.integers(0, NUM - 1), st.integers(0, 5))
def test_a_known_beginning_goes_where_it_is_cached(prompt: list[int], tail: list[int], place: int, first: int) -> None:
    router = Router(NUM, first)
    saved = max((end for end in ENDS if end <= len(prompt)), default=0)
    router.choose(prompt, "", [0] * NUM, [place])
    loads = [saved if at == place else 0 for at in range(NUM)]
    assert router.choose([*prompt, *tail], "", loads, range(NUM)) == (place if saved else router.choose([], "", loads,
                                                                                                       range(NUM)))


def test_not_at_any_price_not_under_another_salt_and_not_after_a_restart() -> None:
    prompt, ready = list(range(1000)), range(2)

    def place(salt: str = "", load: int = 1, forget: bool = False) -> int:
        router = Router(2, 0)
        router.choose(prompt, "", [0, 0], [1])
        if forget:
            router.forget(1)
        return router.choose(prompt, salt, [0, load], ready)

    assert place() == 1
    assert place(load=2000) == place(salt="other") == place(forget=True) == 0


def test_the_longest_beginning_wins_and_among_equals_the_lesser_load() -> None:
    router, prompt = Router(3, 0), list(range(1000))
    router.choose(prompt[:200], "", [0, 0, 0], [1])
    router.choose(prompt, "", [0, 0, 0], [2])
    assert router.choose(prompt, "", [0, 0, 100], range(3)) == 2
    router.choose(prompt, "", [0, 0, 0], [1])
    assert router.choose(prompt, "", [0, 50, 100], range(3)) == 1
    assert router.choose(prompt[:200], "", [0, 100, 50], range(3)) == 2


def test_what_is_remembered_is_bounded_and_the_last_prompts_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MAX_BEGINNINGS", 50)
    router = Router(2, 0)
    families = [list(range(at, at + 1000)) for at in range(0, 10**6, 10**4)]
    for prompt in families:
        router.choose(prompt, "", [0, 0], [1])
        assert len(router._known) <= 50
    assert router.choose(families[-1], "", [0, 700], [0, 1]) == 1
    assert router.choose(families[0], "", [0, 1], [0, 1]) == 0


def test_workers_begin_with_different_engines() -> None:
    assert {Router(NUM, first).choose([1], "", [7] * NUM, range(NUM)) for first in range(100, 100 + NUM)} == {0, 1, 2}


@given(st.lists(st.text(), max_size=20), ready_of)
def test_all_requests_of_a_limited_key_go_to_one_engine_in_every_worker(names: list[str], ready: list[int]) -> None:
    for name in names:
        (home,) = {Router(NUM, first).home(name, ready) for first in range(4)}
        assert home in (ready or range(NUM))
        others = [place for place in range(NUM) if place != home and place in ready]
        assert Router(NUM, 0).home(name, [home, *others]) == home, "another's absence moves nobody"


def test_limited_keys_are_spread_over_the_engines() -> None:
    homes = Counter(Router(4, 0).home(f"key-{number}", range(4)) for number in range(4000))
    assert all(800 < count < 1200 for count in homes.values()), homes


def test_a_key_is_limited_by_any_limit() -> None:
    assert not is_limited(KeyLimits("k", weight=3.0))
    assert all(is_limited(KeyLimits("k", **{name: 1}))
               for name in ("requests_per_minute", "tokens_per_minute", "max_concurrent"))


@given(st.integers(0, 10**4), st.integers(-10**4, 10**4), st.integers(0, 50), st.integers(0, 50),
       st.integers(0, 10**4))
def test_the_load_of_others_is_what_ours_does_not_explain(own: int, later: int, running: int, waiting: int,
                                                          waiting_tokens: int) -> None:
    load = Load()
    load.own = own
    load.heard(Status(running, waiting, 0.5, 0, 0, 0, 0, 0, 0, 0.0, waiting_tokens))
    told = (running + waiting) * SAMPLE_TOKENS + waiting_tokens
    assert load.total == max(own, told)
    load.own = max(0, own + later)
    assert load.total == load.own + max(0, told - own)
    load.lost()
    assert load.total == load.own


@given(st.data())
def test_many_equal_requests_are_shared_out_evenly(data: st.DataObject) -> None:
    """Whatever ends when."""
    router, running, weight = Router(NUM, data.draw(st.integers(0, 9))), [0] * NUM, 10 + SAMPLE_TOKENS
    for _ in range(data.draw(st.integers(1, 60))):
        chosen = router.choose([1] * 10, "", [count * weight for count in running], range(NUM))
        assert running[chosen] == min(running)
        running[chosen] += 1
        ends = data.draw(st.integers(0, NUM - 1))
        running[ends] -= data.draw(st.booleans()) and running[ends] > 0


def test_choosing_costs_microseconds() -> None:
    rng = random.Random(1)
    for num_tokens, most_us in ((50, 15), (8192, 500)):  # ten times what an idle machine takes
        prompts = [[rng.randrange(10**5) for _ in range(num_tokens)] for _ in range(20)]
        router, took = Router(2, 0), []
        for prompt in prompts * 5:
            began = time.perf_counter()
            router.choose(prompt, "", [5, 3], [0, 1])
            took.append(time.perf_counter() - began)
        assert min(took) < most_us / 1e6
