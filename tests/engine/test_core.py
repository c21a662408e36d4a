"""EngineCore on tiny models: what it tells while it works."""

from __future__ import annotations

from pathlib import Path

import pytest

from quire.engine.assembly import assemble
from quire.engine.config import EngineArgs
from quire.engine.core import EngineCore
from quire.engine.execution.executor import Launched
from quire.engine.messages import Delta, Part, SampleSpec, Sampling, Submit
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
