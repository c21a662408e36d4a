"""The rule about who is given up, in a simulated engine with two workers that see only their own requests."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from quire.engine.frontend.request import Request
from quire.engine.frontend.resumption import culprits
from quire.engine.messages import Sampling
from quire.engine.trials import Trials


def request(name: str) -> Request:
    return Request(name, [1], Sampling(), [], None)  # type: ignore[arg-type]


def crash(each: Request, *, started: bool = True, productive: bool = False, after_kill: bool = False) -> bool:
    """One engine more that ended; whether the request is given up."""
    each.started, each.productive = started, productive
    return bool(culprits([each], after_kill=after_kill))


def test_two_engines_that_broke_while_it_gave_no_token_are_enough() -> None:
    assert [crash(each) for each in [request("r")] * 2] == [False, True]


def test_after_kills_from_outside_it_takes_four() -> None:
    assert [crash(each, after_kill=True) for each in [request("r")] * 4] == [False, False, False, True]


def test_what_only_waited_and_what_produced_is_not_suspect() -> None:
    waiting, productive = request("waiting"), request("productive")
    assert not any(crash(waiting, started=False) or crash(productive, productive=True) for _ in range(9))
    assert waiting.suspicion == productive.suspicion == 0


def test_a_suspect_that_a_new_engine_held_back_is_not_judged_again() -> None:
    held = request("held")
    assert not crash(held)
    assert held.suspicion
    assert not any(culprits([held], after_kill=False) for _ in range(9))


def killed(each: Request, *parts: tuple[int, int]) -> bool:
    """After the engine had begun these parts of its prompt; whether the request is given up."""
    for part in parts:
        each.begins(*part)
    return crash(each, after_kill=True)


def test_kills_within_a_long_prompt_that_gets_on_between_them_are_never_its_fault() -> None:
    long = request("long")
    parts = [(start, start + 512) for start in range(0, 512 * 8, 512)]
    for number in (2, 5, 8, 3, 6, 1, 4, 7, 2, 8):
        assert not killed(long, *parts[:number])
        assert long.suspicion <= 2


def test_a_prompt_with_a_deadly_place_is_given_up_at_its_fourth_kill_however_it_is_cut() -> None:
    """Its engine may have told of the part after the one that it died of."""
    rng = random.Random(1)
    for _ in range(200):
        deadly = request("deadly")
        place = rng.randrange(4096)
        outcomes = []
        for _ in range(4):
            starts = sorted({0, *rng.sample(range(1, 4096), 6)})
            parts = [*zip(starts, [*starts[1:], 4096])]
            at = next(i for i, (first, end) in enumerate(parts) if first <= place < end)
            outcomes.append(killed(deadly, *parts[:at + 1 + rng.randrange(2)]))
        assert outcomes == [False, False, False, True]


def test_breaks_count_wherever_they_strike_and_a_token_clears_all() -> None:
    each = request("r")
    each.begins(0, 10)
    assert not crash(each)
    each.suspicion = 0  # as a token does
    each.begins(0, 10)
    assert not crash(each)
    each.begins(10, 20)
    assert crash(each)


@dataclass
class Engine:
    """Takes up to two waiting requests a step; each gives a token in the step after it was taken up, or kills it."""

    deadly: set[str]
    running: list[Request] = field(default_factory=list)
    waiting: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trials: Trials[Request] = Trials(self._add)

    def _add(self, each: Request) -> bool:
        self.waiting.append(each)
        return True

    def submit(self, each: Request) -> None:
        if each.suspicion:
            self.trials.enter(each)
        else:
            self._add(each)

    def step(self, rng: random.Random) -> list[Request] | None:
        """Those that ended; None if it broke."""
        taken = [self.waiting.pop(rng.randrange(len(self.waiting))) for _ in range(min(2, len(self.waiting)))]
        for each in taken:
            each.started = True
        if any(each.request_id in self.deadly for each in taken):
            return None
        ended = []
        for each in self.running:
            each.productive, each.suspicion = True, 0
            self.trials.settled(each)
            if rng.random() < 0.2:
                ended.append(each)
        self.running = [each for each in self.running if each not in ended] + taken
        return ended


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 20), st.booleans())
def test_a_single_culprit_strikes_twice_and_nobody_else_is_given_up(seed: int, num_requests: int, late: bool) -> None:
    rng = random.Random(seed)
    workers: list[list[Request]] = [[], []]
    arriving = [request(f"r{i}") for i in range(num_requests)]
    arriving.insert(num_requests if late else rng.randrange(num_requests + 1), request("deadly"))
    engine, crashes, given_up = Engine({"deadly"}), 0, []
    while arriving or workers[0] or workers[1]:
        for _ in range(min(rng.randrange(3), len(arriving))):
            each = arriving.pop(0)
            workers[rng.randrange(2)].append(each)
            engine.submit(each)
        ended = engine.step(rng)
        if ended is None:
            crashes += 1
            engine = Engine({"deadly"})
            for worker in workers:
                for each in culprits(worker, after_kill=False):
                    given_up.append(each.request_id)
                    worker.remove(each)
                for each in worker:
                    engine.submit(each)
        else:
            for worker in workers:
                worker[:] = [each for each in worker if each not in ended]
    assert (given_up, crashes) == (["deadly"], 2)
