from __future__ import annotations

from typing import Any

import pytest

from quire.engine.config import SchedulerConfig
from quire.engine.errors import InvalidRequestError
from quire.engine.messages import Sampling
from quire.engine.plan import StepPlan, StepResult
from quire.engine.scheduling.prefix_index import extend_hashes
from quire.engine.scheduling.request import Request
from quire.engine.scheduling.scheduler import Scheduler, TokenEvent


def scheduler(**changes: Any) -> Scheduler:
    values = {"num_blocks": 64, "block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 100}
    return Scheduler(SchedulerConfig(**{**values, **changes}))


def request(key: str, num_prompt: int = 6, *, first: int = 10, max_tokens: int = 20, priority: int = 0,
            stop: tuple[int, ...] = (), salt: str = "") -> Request:
    return Request(key, range(first, first + num_prompt), Sampling(max_tokens=max_tokens, stop_token_ids=stop), 1,
                   priority=priority, cache_salt=salt)


def plan(s: Scheduler) -> StepPlan:
    made = s.plan()
    assert made is not None
    return made


def commit(s: Scheduler, made: StepPlan, token_id: int = 1) -> list[TokenEvent]:
    return s.commit(made, StepResult([token_id] * sum(made.samples)))


def finish_all(s: Scheduler) -> None:
    while (made := s.plan()) is not None:
        commit(s, made)
    assert not s.has_work


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    s = scheduler(max_num_batched_tokens=10)
    s.add([request("a", 25)])
    steps = [plan(s) for _ in range(3)]
    assert [(p.starts, p.num_tokens, p.samples) for p in steps] == [
        ([0], [10], [False]), ([10], [10], [False]), ([20], [5], [True])]


def test_decoding_goes_on_while_a_long_prompt_is_computed() -> None:
    s = scheduler(max_num_batched_tokens=10)
    s.add([request("decoding", 4)])
    commit(s, plan(s))
    s.add([request("long", 30, first=40, priority=-1)])
    for _ in range(3):
        made = plan(s)
        assert made.num_tokens == [1, 9]
        assert made.num_decodes == 1
        commit(s, made)


def test_partial_prompts_of_several_requests_share_a_step() -> None:
    s = scheduler(max_num_batched_tokens=10)
    s.add([request("a", 6)])
    s.add([request("b", 9, first=40)])
    assert plan(s).num_tokens == [6, 4]


def test_steps_are_planned_ahead_of_their_results() -> None:
    s = scheduler()
    s.add([request("a", 6, max_tokens=3)])
    steps = [plan(s) for _ in range(3)]
    assert [p.starts for p in steps] == [[0], [6], [7]]
    assert s.plan() is None, "max_tokens is known without the tokens"
    events = [event for p in steps for event in commit(s, p)]
    assert [event.finish_reason for event in events] == ["", "", "length"]
    assert not s.has_work


def test_microbatches_of_a_pipeline_take_turns_and_share_evenly() -> None:
    s = scheduler(num_microbatches=2)
    for number in range(6):
        s.add([request(f"r{number}", 4, first=10 * number)])
    first = plan(s)
    assert s.plan() is None, "what the last stage samples is not known yet"
    commit(s, first)
    one, other = plan(s), plan(s)
    assert s.plan() is None
    assert [len(p.rows) for p in (one, other)] == [3, 3]
    assert not set(one.rows) & set(other.rows)
    commit(s, one, 5)
    again = plan(s)
    assert again.rows == one.rows
    assert again.known_ids == [5, 5, 5], "the first stage is told what the last one sampled"
    assert plan(scheduler_with_one_decode()).known_ids == [], "where every rank samples, none needs telling"


def scheduler_with_one_decode() -> Scheduler:
    s = scheduler()
    s.add([request("a", 4)])
    commit(s, plan(s))
    return s


def test_the_result_of_a_step_after_the_stop_token_is_dropped() -> None:
    s = scheduler()
    s.add([request("a", stop=(7,))])
    first, second = plan(s), plan(s)
    (event,) = commit(s, first, 7)
    assert (event.finish_reason, event.stop_token_id, event.request.token_ids[-1]) == ("stop", 7, 7)
    assert s.has_work, "a step is in flight"
    assert commit(s, second) == []
    assert not s.has_work


def test_a_result_belongs_to_the_request_that_was_planned_and_not_to_the_rows_new_owner() -> None:
    s = scheduler(max_num_seqs=1)
    a, b = request("a"), request("b", first=40)
    s.add([a])
    s.add([b])
    of_a = plan(s)
    assert s.abort("a") is a
    of_b = plan(s)
    assert of_a.rows == of_b.rows
    assert commit(s, of_a, 5) == []
    assert [(e.request, e.token_id) for e in commit(s, of_b, 6)] == [(b, 6)]


def test_logprobs_go_to_their_request() -> None:
    s = scheduler()
    a, b = request("a"), request("b", first=40)
    s.add([a])
    s.add([b])
    entry = (-0.5, 1, [2], [-0.5])
    events = s.commit(plan(s), StepResult([2, 3], {1: entry}))
    assert [(e.request, e.logprobs) for e in events] == [(a, None), (b, entry)]


def test_samples_of_a_prompt_share_its_full_blocks_and_copy_the_last_one() -> None:
    s = scheduler(enable_prefix_caching=False)
    samples = [request(f"s{i}", 10) for i in range(3)]
    s.add(samples)
    first = plan(s)
    assert (first.num_tokens, first.copy_sources) == ([10], [])
    second = plan(s)
    assert second.num_decodes == 3, "each computes one token only"
    leader, *others = samples
    assert [r.blocks[0].blocks[:2] for r in others] == [leader.blocks[0].blocks[:2]] * 2
    assert second.copy_sources == [leader.blocks[0].at(2)] * 2
    assert second.copy_targets == [r.blocks[0].at(2) for r in others]
    assert len({r.blocks[0].at(2) for r in samples}) == 3
    assert s.num_prompt_tokens == 10, "one prompt"


def test_samples_wait_for_the_next_one_when_the_first_is_aborted_early() -> None:
    s = scheduler(max_num_batched_tokens=6)
    s.add([request(f"s{i}", 10) for i in range(3)])
    plan(s)
    s.abort("s0")
    assert s.num_waiting == 2
    assert sum(plan(s).num_tokens) <= 6
    assert (s.num_running, s.num_waiting) == (1, 1)


def test_samples_wait_no_longer_when_the_first_resumes_after_a_cached_prompt() -> None:
    s = scheduler()
    s.add([request("earlier", 12, max_tokens=1)])
    finish_all(s)
    leader = Request("s0", range(10, 18), Sampling(max_tokens=20), 1, output_token_ids=[18, 19, 20, 21, 1])
    s.add([leader, request("s1", 8)])
    assert plan(s).starts == [12], "behind the prompt"
    assert sorted(plan(s).starts) == [7, 13]


def test_a_cached_prefix_is_not_computed_again_but_for_its_last_token() -> None:
    s = scheduler()
    s.add([request("a", 8, max_tokens=1)])
    finish_all(s)
    again = request("b", 8, max_tokens=1)
    s.add([again])
    made = plan(s)
    assert (made.starts, made.num_tokens) == ([4], [4])
    assert again.num_cached_tokens == 4
    assert (s.prefix_queries, s.prefix_hits) == (16, 4)


def test_a_prefix_is_shared_within_one_step() -> None:
    s = scheduler()
    s.add([request("a", 9)])
    s.add([request("b", 9)])
    made = plan(s)
    assert (made.starts, made.num_tokens) == ([8, 0], [1, 9])


def test_produced_tokens_are_cached_too() -> None:
    s = scheduler()
    a = request("a", 6, max_tokens=8)
    s.add([a])
    finish_all(s)
    s.add([Request("b", [*a.token_ids, 5], Sampling(max_tokens=2), 1)])
    assert plan(s).starts == [12]  # 13 of the 14 tokens were computed: 3 full blocks


@pytest.mark.parametrize(("salt", "start"), [("one", 8), ("other", 0), ("", 0)])
def test_a_salt_isolates(salt: str, start: int) -> None:
    s = scheduler()
    s.add([request("a", 9, max_tokens=1, salt="one")])
    finish_all(s)
    s.add([request("b", 9, salt=salt)])
    assert plan(s).starts == [start]


def test_the_last_of_the_worst_priority_is_preempted_and_loses_nothing() -> None:
    s = scheduler(num_blocks=6, enable_prefix_caching=False)
    requests = [request("low", 7, priority=1), request("a", 7), request("b", 7)]
    for each in requests:
        s.add([each])
    low, a, b = requests
    commit(s, plan(s))  # 7 known + 1
    commit(s, plan(s))  # position 7, the last one of the blocks
    made = plan(s)
    assert (s.num_preemptions, low.num_preemptions, low.row, low.blocks) == (1, 1, -1, [])
    assert low.token_ids[7:] == [1, 1]
    assert sorted(made.rows) == sorted([a.row, b.row])


def test_a_request_preempted_with_its_token_in_flight_gets_that_token_and_resumes_after_it() -> None:
    s = scheduler(num_blocks=4, enable_prefix_caching=False)
    a, b = request("a", 7, max_tokens=3), request("b", 7, max_tokens=3)
    s.add([a])
    s.add([b])
    commit(s, plan(s))
    second = plan(s)
    third = plan(s)  # a needs a third block
    assert b.num_preemptions == 1
    assert s.plan() is None
    assert [e.token_id for e in commit(s, second, 5)] == [5, 5]
    commit(s, third, 6)
    resumed = plan(s)
    (row,) = resumed.new_rows
    assert row.token_ids == [*range(10, 17), 1, 5]
    assert row.num_prompt_tokens == 7


def test_nobody_overtakes_the_first_in_the_queue() -> None:
    s = scheduler(num_blocks=8)
    s.add([request("running", 16)])
    plan(s)
    s.add([request("large", 24, first=40)])
    s.add([request("small", 1, first=90)])
    assert sum(plan(s).num_tokens) == 1
    assert s.num_waiting == 2


def test_a_better_priority_is_admitted_first() -> None:
    s = scheduler(max_num_seqs=1)
    s.add([request("later", 5, priority=1)])
    s.add([request("sooner", 6, first=40)])
    assert plan(s).num_tokens == [6]


def test_blocks_and_rows_of_aborted_requests_are_free_at_once() -> None:
    s = scheduler(num_blocks=4, max_num_seqs=1)
    s.add([request("a", 15, max_tokens=1)])
    plan(s)
    assert s.kv_usage == 1.0
    s.abort("a")
    assert s.kv_usage == 0.0
    s.add([request("b", 15, first=40, max_tokens=1)])
    assert plan(s).num_tokens == [15]


def test_aborting_an_unknown_request_does_nothing() -> None:
    assert scheduler().abort("nobody") is None


def test_tokens_are_counted() -> None:
    s = scheduler()
    s.add([request("a", 6, max_tokens=4)])
    s.add([request("b", 5, first=40, max_tokens=2)])
    finish_all(s)
    assert (s.num_prompt_tokens, s.num_generation_tokens, s.num_steps) == (11, 6, 4)


@pytest.mark.parametrize(("num_prompt", "max_tokens", "num_output", "param", "words"), [
    (0, 5, 0, "prompt", "at least one token"),
    (100, 5, 0, "prompt", "length is 100 tokens. However, you requested 5 output tokens and your prompt contains 100"),
    (60, 10, 0, "max_tokens", "need 70 places in the KV cache, which has 64"),
    (10, 5, 5, "max_tokens", "Nothing is left to generate"),
])
def test_what_can_never_be_served_is_refused(num_prompt: int, max_tokens: int, num_output: int, param: str,
                                             words: str) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        scheduler(num_blocks=16).check_admissible(num_prompt, max_tokens, num_output)
    assert refusal.value.param == param
    assert words in refusal.value.message


def test_what_fits_exactly_is_served() -> None:
    s = scheduler(num_blocks=16)
    s.check_admissible(60, 4)
    s.add([request("a", 60, max_tokens=4)])
    finish_all(s)


def test_a_plan_that_lets_many_in_does_not_hash_their_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step waits for its plan, and cached prompts take no room in one: as many as there are rows may come in."""
    s = scheduler(max_num_batched_tokens=64)
    s.add([request("first", 41)])
    commit(s, plan(s))
    for i in range(7):
        s.add([request(str(i), 41)])
    hashed: list[int] = []

    def noting(hashes: list[bytes], token_ids: Any, num_full: int, *args: Any) -> None:
        hashed.append(num_full - len(hashes))
        extend_hashes(hashes, token_ids, num_full, *args)

    monkeypatch.setattr("quire.engine.scheduling.prefix_cache.extend_hashes", noting)
    plan(s)
    assert s.num_running == 8
    assert not sum(hashed)
