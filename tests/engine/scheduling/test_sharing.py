"""What decoding requests have in common is found, is really in common, and is said only where it saves something."""

from __future__ import annotations

from quire.engine.config import SchedulerConfig
from quire.engine.messages import Sampling
from quire.engine.plan import StepPlan, StepResult
from quire.engine.scheduling.request import Request
from quire.engine.scheduling.scheduler import Scheduler
from quire.engine.scheduling.sharing import MIN_SAVED_TOKENS, NOTHING_SHARED, largest_shared_beginning

BLOCK = 16


def scheduler() -> Scheduler:
    return Scheduler(SchedulerConfig(num_blocks=4000, block_size=BLOCK, max_num_seqs=64, max_num_batched_tokens=8192,
                                     max_model_len=4096))


def request(key: int, prompt: list[int]) -> Request:
    return Request(key, prompt, Sampling(max_tokens=20), 0)


def run(s: Scheduler, num_steps: int) -> list[StepPlan]:
    plans = []
    for _ in range(num_steps):
        plan = s.plan()
        assert plan is not None
        plans.append(plan)
        s.commit(plan, StepResult([7] * sum(plan.samples)))
    return plans


def test_requests_with_one_beginning_share_it_and_others_do_not() -> None:
    s = scheduler()
    beginning = list(range(1000, 1000 + 1024))
    s.add([request(0, [*beginning, 1])])
    run(s, 1)
    for key in range(1, 30):
        s.add([request(key, [*(beginning if key % 3 else []), key, *range(key, key + 5)])])
    plan = run(s, 3)[-1]
    rows_of = {r.row: r for r in s._running.requests}
    members = [rows_of[plan.rows[place]] for place in plan.shared_places]
    assert len(members) == 21
    assert plan.num_shared_tokens == 1024
    first = members[0].blocks[0].blocks[:64]
    assert all(r.blocks[0].blocks[:64] == first for r in members)
    assert all(r.num_computed > 1024 for r in members), "each has a token of its own"
    others = [r for place, row in enumerate(plan.rows) for r in [rows_of[row]] if place not in plan.shared_places]
    assert others
    assert all(r.blocks[0].at(0) != first[0] for r in others)


def test_the_deepest_beginning_is_not_taken_if_a_shallower_one_saves_more() -> None:
    s = scheduler()
    common = list(range(512))
    s.add([request(0, [*common, 1])])
    s.add([request(100, [*common, *range(3000, 4024), 1])])
    run(s, 2)
    for key in range(1, 40):
        s.add([request(key, [*common, 2, key])])
    s.add([request(101, [*common, *range(3000, 4024), 2])])
    plan = run(s, 3)[-1]
    assert plan.num_shared_tokens == 512
    assert len(plan.shared_places) == 42


def test_nothing_is_said_where_little_is_saved() -> None:
    s = scheduler()
    beginning = list(range(MIN_SAVED_TOKENS // 8))
    for key in range(8):  # one short of worth it
        s.add([request(key, [*beginning, key])])
    assert all(not plan.shared_places for plan in run(s, 5))
    s.add([request(8, [*beginning, 8])])
    assert any(plan.shared_places for plan in run(s, 3))


def test_a_group_that_has_ended_is_forgotten() -> None:
    s = scheduler()
    beginning = list(range(2048))
    for key in range(10):
        s.add([request(key, [*beginning, key])])
    s.add([request(99, list(range(5000, 5100)))])
    assert run(s, 3)[-1].shared_places
    for key in range(10):
        s.abort(key)
    assert not run(s, 1)[-1].shared_places


def test_no_requests_share_nothing() -> None:
    assert largest_shared_beginning([], [], BLOCK) == NOTHING_SHARED
