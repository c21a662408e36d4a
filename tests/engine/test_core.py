"""EngineCore on tiny models: what it tells while it works."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.engine.assembly import assemble
from quire.engine.config import EngineArgs
from quire.engine.core import EngineCore
from quire.engine.execution.executor import Launched
from quire.engine.messages import Accepted, Beams, Delta, Part, SampleSpec, Sampling, Submit
from quire.engine.plan import NOTHING_LEFT, StepPlan, StepResult
from tests.engine.models import tiny
from tests.engine.scripted import ScriptedExecutor, scripted_core

NUM_LAYERS = 2


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_step_tells_at_each_layer_that_it_gets_on(tmp_path: Path, num_ranks: int) -> None:
    """Ranks of their own tell twice a second: here of the first layer of all."""
    told: list[int] = []
    tiny.write(tmp_path, "llama", num_hidden_layers=NUM_LAYERS)
    core = assemble(EngineArgs.of({"model": str(tmp_path), "device": "cpu", "pipeline_parallel_size": num_ranks,
                                   "max_model_len": 64, "cpu_threads": 1}), lambda *_: None, lambda: told.append(1))
    try:
        assert not told
        core.submit("owner", Submit(core.info.instance, "r", [1, 2, 3], Sampling(max_tokens=2), [SampleSpec(1, 1)]))
        num_steps = 0
        while core.has_work:
            core.step()
            num_steps += 1
        if num_ranks == 1:
            assert len(told) == NUM_LAYERS * num_steps
        else:
            assert 1 <= len(told) <= num_ranks * NUM_LAYERS * num_steps
    finally:
        core.close()


def test_which_part_of_a_prompt_a_step_computes_is_told_before_it(tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama", num_hidden_layers=NUM_LAYERS)
    core = assemble(EngineArgs.of({"model": str(tmp_path), "device": "cpu", "max_num_batched_tokens": 16,
                                   "max_model_len": 64, "cpu_threads": 1}), lambda *_: None)
    core.submit("owner", Submit(core.info.instance, "r", [*range(40)], Sampling(max_tokens=3), [SampleSpec(1, 1)]))
    launch, told = core._executor.launch, []

    def watched(plan: StepPlan) -> Launched:
        told.append("step")
        return launch(plan)

    core._executor.launch = watched  # type: ignore[method-assign]
    while core.has_work:
        core.step(lambda samples, parts: told.append((samples, parts)))
    core.close()
    assert told == [
        ([("owner", 1)], [("owner", Part(1, 0, 16))]), "step",
        ([], [("owner", Part(1, 16, 32))]), "step",
        ([], [("owner", Part(1, 32, 40))]), "step",
        "step", "step"]


def deltas_of(core: EngineCore) -> dict[int, list[Delta]]:
    found: dict[int, list[Delta]] = {}
    while core.has_work:
        for _, delta in core.step():
            found.setdefault(delta.id, []).append(delta)
    return found


@pytest.mark.parametrize("steps_ahead", [0, 1, 2])
def test_a_sample_for_which_nothing_could_be_drawn_ends_alone(steps_ahead: int) -> None:
    def script(plan: StepPlan) -> StepResult:
        is_second = any(position == 5 for position in plan.sampled_positions)
        return StepResult([NOTHING_LEFT if row == 0 and is_second else 7 for row in plan.sampling_rows])

    executor = ScriptedExecutor(script)
    core = scripted_core(executor, steps_ahead=steps_ahead)
    for id in (1, 2):
        core.submit("owner", Submit(core.info.instance, "r", [3, 4, 5, 6], Sampling(max_tokens=4), [SampleSpec(id, 1)]))
    found = deltas_of(core)
    assert [(delta.token_ids, delta.finish_reason) for delta in found[1]] == [([7], ""), ([], "error")]
    assert [delta.token_ids for delta in found[2]] == [[7]] * 4 and found[2][-1].finish_reason == "length"
    assert core.scheduler.kv_usage == 0
    core.close()
    assert executor.is_closed


def test_after_an_error_in_a_step_the_core_says_that_it_is_of_no_use() -> None:
    def script(plan: StepPlan) -> StepResult:
        raise RuntimeError("the device is gone")

    core = scripted_core(ScriptedExecutor(script), steps_ahead=0)
    core.submit("owner", Submit(core.info.instance, "r", [3], Sampling(max_tokens=4), [SampleSpec(1, 1)]))
    with pytest.raises(RuntimeError, match="the device is gone"):
        core.step()
    assert not core.is_sound


@dataclass
class Clock:
    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class House:
    """A core and its workers: who has which samples unfinished, by what was told to them."""

    core: EngineCore
    clock: Clock
    unfinished: set[tuple[object, int]] = field(default_factory=set)
    started: set[tuple[object, int]] = field(default_factory=set)
    num_ids: int = 0

    def submit(self, owner: str, num_samples: int, num_prompt: int, max_tokens: int, suspect: bool, timeout_s: float,
               searches: bool) -> None:
        ids = range(self.num_ids, self.num_ids + num_samples)
        self.num_ids += num_samples
        beams = Beams(num_samples, num_samples) if searches else None
        reply = self.core.submit(owner, Submit(
            self.core.info.instance, "r", [5] * num_prompt, Sampling(max_tokens=max_tokens, beams=beams),
            [SampleSpec(id, id) for id in ids], queue_timeout_s=timeout_s, suspect=suspect))
        assert reply.ids == [*ids]
        if isinstance(reply, Accepted):
            self.unfinished |= {(owner, id) for id in ids}

    def abort(self, owner: str, id: int) -> None:
        """Of a search all end, and its worker aborts all."""
        submission = self.core._unfinished[owner].get(id)
        ids = [id] if submission is None or submission.beams is None else [*submission.unfinished]
        self.core.abort(owner, ids)
        self.unfinished -= {(owner, each) for each in ids}

    def leave(self, owner: str) -> None:
        mine = {sample for sample in self.unfinished if sample[0] == owner}
        assert self.core.abort_owner(owner) == len(mine)
        self.unfinished -= mine

    def wait(self) -> None:
        self.clock.now += 6
        for owner, refusal in self.core.expire():
            gone = {(owner, id) for id in refusal.ids}
            assert gone <= self.unfinished
            assert not gone & self.started, "only what no step took up"
            self.unfinished -= gone

    def step(self) -> None:
        for owner, delta in self.core.step(lambda samples, parts: self.started.update(samples)):
            sample = owner, delta.id
            assert sample in self.unfinished, "a word about a sample that has ended"
            assert sample in self.started or delta.cumulative_logprob is not None
            if delta.finish_reason:
                self.unfinished.remove(sample)


OWNERS = st.sampled_from("ab")
ACTIONS = st.one_of(
    st.tuples(st.just("submit"), OWNERS, st.integers(1, 3), st.integers(0, 60), st.integers(1, 12),
              st.sampled_from([False, False, True]), st.sampled_from([0.0, 0.0, 5.0]), st.booleans()),
    st.tuples(st.just("abort"), OWNERS, st.integers(0, 12)), st.tuples(st.just("leave"), OWNERS),
    st.tuples(st.just("wait")), st.tuples(st.just("step")), st.tuples(st.just("step")))


@pytest.mark.parametrize("num_histories", [50, pytest.param(5000, marks=[
    pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_each_accepted_sample_ends_once_and_nothing_is_left_of_it(num_histories: int) -> None:
    """Whatever is submitted, aborted, left behind and overdue, of ids known and unknown, suspects and searches too."""

    def script(plan: StepPlan) -> StepResult:
        count = len(plan.sampling_rows)
        likeliest = (-1.0, 1, [*range(10)], [-1.0 - rank for rank in range(10)])
        return StepResult([3] * count, dict.fromkeys(range(count), likeliest))

    @settings(max_examples=num_histories)
    @given(st.lists(ACTIONS, max_size=30), st.integers(0, 2))
    def try_history(actions: list[tuple[str, ...]], steps_ahead: int) -> None:
        clock = Clock()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("quire.engine.core.time", clock)
            house = House(scripted_core(ScriptedExecutor(script, num_blocks=12), steps_ahead=steps_ahead), clock)
            for name, *arguments in actions:
                getattr(house, name)(*arguments)
            for _ in range(2000):
                if not house.core.has_work:
                    break
                house.step()
        assert not house.unfinished
        core = house.core
        assert core.scheduler.kv_usage == 0
        assert not core._timed and not any(core._unfinished.values())
        assert not any(account.num_running for account in core._admission._accounts.values())

    try_history()
