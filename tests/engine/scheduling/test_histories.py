"""Whatever arrives, is aborted, steps and is committed, in any order: the scheduler's books are right at each moment,
and everybody is served in the end. The device is simulated: what it would compute is checked token by token."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from quire.engine.config import SchedulerConfig
from quire.engine.scheduling.request import RequestStatus
from tests.engine.scheduling.test_simulation import CONFIGS, Group, Simulation, check_holdings, groups

MOST_TURNS = 3000  # beyond any history's need: what takes longer gets nowhere


class Histories(RuleBasedStateMachine):
    @initialize(config=CONFIGS, depth=st.integers(0, 2))
    def begin(self, config: SchedulerConfig, depth: int) -> None:
        self.simulation = Simulation(config, [], depth)

    @rule(group=groups())
    def arrive(self, group: Group) -> None:
        self.simulation.groups.append(group)
        self.simulation.arrive(len(self.simulation.groups) - 1)

    @precondition(lambda self: self.simulation.groups)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.simulation.groups) - 1), label="group")
        sample = data.draw(st.integers(0, self.simulation.groups[number].num_samples - 1), label="sample")
        self.simulation.abort(number, sample)

    @rule()
    def step(self) -> None:
        self.simulation.step()

    @precondition(lambda self: self.simulation.in_flight)
    @rule()
    def commit(self) -> None:
        """Earlier than it must be: the engine does where it has nothing to launch."""
        self.simulation.commit()

    @invariant()
    def books_are_right(self) -> None:
        scheduler = self.simulation.scheduler
        check_holdings(scheduler)
        # Every block that a prefix is found by holds it, and no two prefixes are found in one block.
        index = scheduler._allocator.index
        if index is not None:
            found = [block for of_group in index._block_of for block in of_group.values()]
            assert len(found) == len(set(found)) == len(index)
        assert scheduler.num_running + scheduler.num_waiting == len(scheduler._requests)
        queued = [entry.num_tokens for entry in scheduler._waiting._entries.values()]
        assert scheduler.num_waiting_tokens == sum(queued)
        waiting = [request for request in scheduler._requests.values() if request.status is RequestStatus.WAITING]
        assert len(queued) <= len(waiting), "what waits for a leader is not in the queue"

    def teardown(self) -> None:
        """Whatever the history was, all that was not aborted is served to its end, as if it had been alone."""
        if not hasattr(self, "simulation"):
            return
        for _ in range(MOST_TURNS):
            if not self.simulation.scheduler.has_work:
                break
            self.simulation.step()
        self.simulation.check_outputs()


@pytest.mark.parametrize("num_histories", [25, pytest.param(4000, marks=[
    pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_the_books_are_right_at_each_moment_and_everybody_is_served(num_histories: int) -> None:
    run_state_machine_as_test(Histories, settings=settings(
        max_examples=num_histories, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow]))
