"""The simulator's scheduler against the engine's own, of which it is a faster form: every figure of both is equal."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.engine.plan import StepPlan, StepResult
from quire.engine.scheduling.request import Request
from quire.engine.scheduling.scheduler import Scheduler, TokenEvent
from quire.loadtest.simulate import replay
from quire.loadtest.simulate.block_names import BlockNames
from quire.loadtest.simulate.coasting import CoastingScheduler
from quire.loadtest.simulate.crowd import NO_DECODES
from quire.loadtest.simulate.replay import Replay, Replayed
from quire.loadtest.simulate.trace import Arrival
from tests.loadtest.test_simulate import plant


def engines_own(arrivals: list[Arrival]) -> type[Scheduler]:
    """The engine's scheduler as it is, with tokens and their hashes in place of names; each output is of one token."""
    names = sorted({arrival.prefix for arrival in arrivals})

    class Own(Scheduler):
        decodes = NO_DECODES

        def add(self, requests: list[Request]) -> None:
            (request,) = requests
            arrival = arrivals[int(str(request.key))]
            own = arrival.prompt_tokens - arrival.prefix_tokens
            request.token_ids[:] = ([-1 - names.index(arrival.prefix)] * arrival.prefix_tokens
                                    + [int(str(request.key)) + 1] * own)
            request.block_hashes = []
            super().add(requests)

        def commit_lengths(self, plan: StepPlan) -> list[TokenEvent]:
            return self.commit(plan, StepResult([int(str(request.key)) + 1 for request in self._in_flight[0].sampled]))

    return Own


def told(found: Replayed) -> dict[str, Any]:
    return {**asdict(found), "served": [repr(served) for served in found.served]}  # NaN is not equal to itself


def both(arrivals: list[Arrival], shape: str, **flags: Any) -> tuple[Replayed, Replayed]:
    """What comes of them by our scheduler, and by the engine's."""
    made = plant(shape, **flags)
    found = []
    for scheduler in (CoastingScheduler, engines_own(arrivals)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(replay, "CoastingScheduler", scheduler)
            found.append(Replay(made.scheduler, made.cost, max_queued_requests=10**6, max_queued_tokens=None)
                         .run(arrivals))
    return found[0], found[1]


def crowd_of(seed: int, count: int, rate: float) -> list[Arrival]:
    rng, now, arrivals = random.Random(seed), 0.0, []
    for _ in range(count):
        now += rng.expovariate(rate)
        prompt = rng.randint(1, rng.choice([1, 5, 40, 300, 1200]))
        prefix = rng.choice([0, 0, rng.randint(0, prompt), prompt])
        arrivals.append(Arrival(now, prompt, rng.choice([1, 2, 3, 17, 150, 600]), rng.choice("ab") if prefix else "",
                                prefix, rng.choice([0, 0, 1]), rng.choice("xy")))
    return arrivals


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.sampled_from([10, 40]), rate=st.sampled_from([5.0, 100.0, 1e4]),
       shape=st.sampled_from(["llama-7b", "gemma-3-4b"]), num_blocks=st.sampled_from([300, 600, 5000]),
       flags=st.fixed_dictionaries({
           "max_num_seqs": st.sampled_from([4, 30, 100]), "max_num_batched_tokens": st.sampled_from([32, 256, 2048]),
           "block_size": st.sampled_from([16, 32]), "enable_prefix_caching": st.booleans()}))
def test_every_figure_is_that_of_the_engines_scheduler(seed: int, count: int, rate: float, shape: str, num_blocks: int,
                                                       flags: dict[str, Any]) -> None:
    ours, engines = both(crowd_of(seed, count, rate), shape, num_gpu_blocks_override=num_blocks, max_model_len=2200,
                         **flags)
    assert told(ours) == told(engines)


@pytest.mark.parametrize(("shape", "num_blocks"), [("llama-7b", 180), ("gemma-3-4b", 500)])
def test_it_is_so_where_requests_are_preempted_and_beginnings_shared(shape: str, num_blocks: int) -> None:
    arrivals = [Arrival(i / 50, 200 + i, 100 + 9 * i, "system" if i % 3 else "", 192 if i % 3 else 0)
                for i in range(40)]
    ours, engines = both(arrivals, shape, num_gpu_blocks_override=num_blocks)
    assert told(ours) == told(engines)
    assert ours.num_preemptions > 0 and ours.num_cached_tokens > 0


def test_it_is_so_where_attention_reads_a_shared_beginning_once() -> None:
    arrivals = [Arrival(i / 1000, 2000, 60, "system", 1900) for i in range(12)]
    ours, engines = both(arrivals, "llama-7b")
    assert told(ours) == told(engines)
    apart, _ = both([Arrival(i / 1000, 2000, 60) for i in range(12)], "llama-7b")
    assert ours.busy_s < apart.busy_s


def test_requests_that_only_decode_cost_no_row() -> None:
    made = plant()
    scheduler = CoastingScheduler(made.scheduler)
    rows: list[int] = []
    plan = scheduler.plan

    def counting() -> StepPlan | None:
        found = plan()
        rows.append(len(found.rows) if found else 0)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "plan", counting)
        patch.setattr(replay, "CoastingScheduler", lambda _: scheduler)
        Replay(made.scheduler, made.cost, max_queued_requests=99, max_queued_tokens=None).run(
            [Arrival(0.0, 100, 500) for _ in range(50)])
    assert sum(rows) == 50 * 2, "a prompt, and the last token, which ends it"
    assert scheduler.num_generation_tokens == 50 * 500


def test_blocks_have_one_name_where_prompts_begin_alike() -> None:
    names = BlockNames(16)
    one, other = (names.of(number, Arrival(0.0, 100, 60, "a", 64)) for number in range(2))
    assert one[:4] == other[:4] and not set(one[4:]) & set(other[4:])
    assert len(one) == len(set(one)) == 10
    assert not set(one) & set(names.of(2, Arrival(0.0, 100, 60, "b", 64)))
    three, four = (names.of(number, Arrival(0.0, 70, 60, "a", 70)) for number in (3, 4))
    assert three[:4] == four[:4] == one[:4] and not set(three[4:]) & set(four[4:]), "outputs differ"
