"""The engine's scheduler, for tokens that nobody reads: it decides the same, faster.

A request that only decodes takes one token at each step until it needs a block or ends, which is known beforehand.
Until then it coasts: it is counted with the others (`crowd`), and its own counters are brought up to date when
something happens to it. Its full blocks are registered then too: they hold its own output, and nobody else asks. Where
a step may have to preempt or has not budget enough for all, none coasts, and the engine's code decides alone.
The outcome is the engine's to the last figure, which tests compare. Refuses to know time (`replay`).
"""

from __future__ import annotations

from collections import deque
from operator import attrgetter

from quire.engine.config import SchedulerConfig
from quire.engine.plan import StepPlan, StepResult
from quire.engine.scheduling.allocator import Gaps
from quire.engine.scheduling.block_run import BlockRun
from quire.engine.scheduling.draft import Draft
from quire.engine.scheduling.prefix_cache import Reuse
from quire.engine.scheduling.request import Request
from quire.engine.scheduling.scheduler import Scheduler, TokenEvent
from quire.engine.scheduling.sharing import NOTHING_SHARED
from quire.loadtest.simulate.crowd import NO_DECODES, Crowd, Member

_ORDER = attrgetter("order")
_ONE_BLOCK = Gaps([0], [0])


class CoastingScheduler(Scheduler):
    """One sample a request, without images, beams, stop tokens or aborts; one step may be in flight while the next is
    planned."""

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config)
        self.decodes = NO_DECODES  # of the step planned last, beside its plan
        self._is_plain = config.windows == (None,)
        self._crowd = Crowd(config.windows)
        self._near: dict[Request, None] = {}  # running, and not in the crowd
        self._num_coasting: deque[int] = deque()  # in each step in flight
        self._spare: list[Draft] = []  # empty, and no longer in flight

    def plan(self) -> StepPlan | None:
        step = self.num_steps
        due = self._crowd.due(step)
        can_coast = self._can_coast(due)
        if can_coast and self._is_plain:
            due = [member for member in due if not self._goes_on(member, step)]
            if not due and not self._near and not self._waiting and self._crowd:
                return self._planned(self._empty_draft(step)).plan
        draft = Draft(step, self.config.max_num_batched_tokens, names_decode_ids=False)
        if can_coast:
            self._advance(draft, due)
        else:
            self._settle(step)
            self._schedule_running(draft)
        if not draft.under_pressure:
            self._admit_waiting(draft)
        plan = draft.finish(NOTHING_SHARED)
        return self._planned(draft).plan if plan.rows or self._crowd else None

    def _planned(self, draft: Draft) -> Draft:
        self.decodes = self._crowd.decodes(draft.plan.step)
        self.decodes.read[None] -= self._num_shared_again(draft.plan)
        self.num_steps += 1
        self._in_flight.append(draft)
        self._num_coasting.append(len(self._crowd))
        return draft

    def _empty_draft(self, step: int) -> Draft:
        """Of a step in which all coast. It is used again: to make one takes longer than the rest of such a step."""
        draft = self._spare.pop() if self._spare else Draft(step, 0, names_decode_ids=False)
        draft.plan.step = step
        return draft

    def _can_coast(self, due: list[Member]) -> bool:
        """Whether the step has a token for each that decodes, and blocks for all that may need some."""
        if len(self._running) >= self.config.max_num_batched_tokens:
            return False
        block_size = self.config.block_size
        num_blocks = len(due)
        for request in self._near:
            num_blocks += max(0, -(-(request.num_total + 1) // block_size) - request.num_slots // block_size)
        return num_blocks * len(self.config.windows) <= self._allocator.pool.num_free

    def _advance(self, draft: Draft, due: list[Member]) -> None:
        """What `_schedule_running` does where nobody is preempted, for those that do not coast."""
        step = draft.plan.step
        prefilling = []
        for member in due:
            self._land(member, step)
        owed = {member.request for member in due}  # they coasted in the step before, whose plan does not have them
        for request in sorted([*owed, *self._near], key=_ORDER):
            if request.num_total == request.max_total:
                continue
            is_decode = request.num_total - request.num_computed == 1
            if request.num_slots < (request.num_computed + 1 if is_decode else request.num_total):
                self._grow(request, draft)
            if not is_decode:
                prefilling.append(request)
            elif request.prompt_step >= 0 and request.num_total + 1 < request.max_total:
                self._near.pop(request, None)
                self._crowd.join(request, step)
            else:
                if request in owed:
                    self._owe(request)
                draft.decode(request)
        draft.budget -= len(self._crowd)
        for request in prefilling:
            if not draft.budget:
                return
            self._compute_part(request, draft)

    def _goes_on(self, member: Member, step: int) -> bool:
        """Gives it its next block, the most frequent of all events; False, and nothing, if it needs more than that."""
        request, start = member.request, member.ahead + step
        if start != request.num_slots or request.max_total <= start + 2:
            return False
        block_size = self.config.block_size
        self._allocator.fill(request.blocks, _ONE_BLOCK)
        request.num_slots += block_size
        self._crowd.stay(member, step + min(block_size, request.max_total - 2 - start))
        return True

    def _settle(self, step: int) -> None:
        """None coasts any more."""
        for member in list(self._crowd.members.values()):
            self._land(member, step)
            self._owe(member.request)

    def _land(self, member: Member, step: int) -> None:
        """It coasts no more, and its counters are as if it had been in the plan of each step before this one."""
        self._crowd.leave(member)
        request = member.request
        start = member.ahead + step
        request.num_computed, request.num_total = start, start + 1
        request.token_ids += [0] * (start - len(request.token_ids))
        if start >= request.register_at:
            self._prefix_cache.register(request)

    def _owe(self, request: Request) -> None:
        """It gets its token of the step in flight when that is committed, like those of its plan."""
        assert len(self._in_flight) == 1
        self._in_flight[-1].sampled.append(request)
        self._num_coasting[-1] -= 1
        self._near[request] = None

    def _num_shared_again(self, plan: StepPlan) -> int:
        """Tokens of a shared beginning that the step does not read for each row again; see `sharing`."""
        if self.config.windows[0] is not None:
            return 0
        shared = self._running.shared_beginning(self._allocator.pool.reference_counts, self.config.block_size)
        if not shared.num_tokens:
            return 0
        num_members = len(shared.rows & self._crowd.rows) + sum(
            row in shared.rows for row in plan.rows[:plan.num_decodes])
        return (num_members - 1) * shared.num_tokens if shared.is_worth_it(num_members) else 0

    # -- who is near

    def _start(self, request: Request, blocks: list[BlockRun], reuse: Reuse) -> None:
        super()._start(request, blocks, reuse)
        self._near[request] = None

    def _give_back(self, request: Request) -> None:
        super()._give_back(request)
        del self._near[request]

    # -- results

    def commit_lengths(self, plan: StepPlan) -> list[TokenEvent]:
        """`commit`, of tokens that are all 0. Requests that coast have no event."""
        self.num_generation_tokens += self._num_coasting.popleft()
        draft = self._in_flight[0]
        if draft.sampled or plan.rows:
            return self.commit(plan, StepResult([0] * len(draft.sampled)))
        self._spare.append(self._in_flight.popleft())
        return []
