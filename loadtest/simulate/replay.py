"""Lets requests arrive at the engine's own scheduler, and time pass as a cost model says. No threads, no sleep.

Like the engine with a GPU, it plans a step while the one before it runs. What a token is does not matter: outputs are
as long as the trace says, and prompts share as many tokens as it says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from quire.engine.admission import most_queued_tokens
from quire.engine.config import SchedulerConfig
from quire.engine.errors import InvalidRequestError
from quire.engine.messages import Sampling
from quire.engine.plan import StepPlan
from quire.engine.scheduling.request import Request
from quire.loadtest.simulate.block_names import BlockNames
from quire.loadtest.simulate.coasting import CoastingScheduler
from quire.loadtest.simulate.cost_model import CostModel
from quire.loadtest.simulate.trace import Arrival


@dataclass(slots=True)
class Served:
    """One request; times in seconds since the first moment of the trace. NaN: never."""

    arrival: Arrival
    started: float = float("nan")
    first_token: float = float("nan")
    ended: float = float("nan")


@dataclass(slots=True)
class Replayed:
    served: list[Served] = field(default_factory=list)  # to their ends
    num_invalid: int = 0  # could never be served
    num_overload: int = 0  # came when the queue was full
    seconds: float = 0.0  # to the end of the last
    busy_s: float = 0.0  # the device's
    running_s: float = 0.0  # running requests, times how long they were so many
    cache_s: float = 0.0  # share of the blocks in use, times how long
    most_running: int = 0
    most_waiting: int = 0
    most_cache: float = 0.0
    num_steps: int = 0
    num_preemptions: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0  # of prompts, found in the prefix cache


class Replay:
    def __init__(self, config: SchedulerConfig, cost: CostModel, *, max_queued_requests: int,
                 max_queued_tokens: int | None) -> None:
        self._scheduler = CoastingScheduler(config)
        self._cost = cost
        self._max_queued_requests = max_queued_requests
        kv_tokens = config.num_blocks * config.block_size // len(config.windows)
        self._max_queued_tokens = most_queued_tokens(max_queued_tokens, kv_tokens)
        self._in_flight: deque[tuple[StepPlan, float]] = deque()  # and when it will have run
        self._now = self._free_at = 0.0
        self._names = BlockNames(config.block_size)
        self._unfinished: dict[Hashable, Served] = {}
        self._result = Replayed()

    def run(self, arrivals: Iterable[Arrival]) -> Replayed:
        """`arrivals` in order of time."""
        coming = iter(arrivals)
        number, following = 0, next(coming, None)
        while following is not None or self._scheduler.has_work:
            while following is not None and following.arrival_s <= self._now:
                self._arrive(number, following)
                number, following = number + 1, next(coming, None)
            plan = self._scheduler.plan()
            if plan is not None:
                self._launch(plan)
            if self._in_flight and (plan is None or len(self._in_flight) > 1):
                self._commit()
            elif plan is None and following is not None:
                self._pass(following.arrival_s)  # nothing to do until then
        self._result.seconds = self._now
        self._result.num_steps = self._scheduler.num_steps
        self._result.num_preemptions = self._scheduler.num_preemptions
        self._result.num_prompt_tokens = self._scheduler.num_prompt_tokens
        self._result.num_output_tokens = self._scheduler.num_generation_tokens
        self._result.num_cached_tokens = self._scheduler.prefix_hits
        return self._result

    def _arrive(self, number: int, arrival: Arrival) -> None:
        scheduler = self._scheduler
        try:
            scheduler.check_admissible(arrival.prompt_tokens, arrival.output_tokens)
        except InvalidRequestError:
            self._result.num_invalid += 1
            return
        if scheduler.num_waiting and (  # as the engine's door: whoever finds the queue empty may enter
                scheduler.num_waiting >= self._max_queued_requests
                or scheduler.num_waiting_tokens + arrival.prompt_tokens > self._max_queued_tokens):
            self._result.num_overload += 1
            return
        request = Request(number, [0] * arrival.prompt_tokens, Sampling(max_tokens=arrival.output_tokens), 0,
                          priority=arrival.priority, key_name=arrival.key)
        request.block_hashes = self._names.of(number, arrival)
        scheduler.add([request])
        self._unfinished[number] = Served(arrival)
        self._result.most_waiting = max(self._result.most_waiting, scheduler.num_waiting)

    def _launch(self, plan: StepPlan) -> None:
        for request in self._scheduler.take_started():
            self._unfinished[request.key].started = self._now
        self._scheduler.take_parts()
        seconds = self._cost.seconds(plan, self._scheduler.decodes)
        self._free_at = max(self._now, self._free_at) + seconds
        self._result.busy_s += seconds
        self._result.most_running = max(self._result.most_running, self._scheduler.num_running)
        self._result.most_cache = max(self._result.most_cache, self._scheduler.kv_usage)
        self._in_flight.append((plan, self._free_at))

    def _commit(self) -> None:
        plan, ends = self._in_flight.popleft()
        self._pass(ends)
        now, unfinished = self._now, self._unfinished
        for request, _, reason, _, _ in self._scheduler.commit_lengths(plan):
            if len(request.token_ids) == request.num_prompt_tokens + 1:
                unfinished[request.key].first_token = now
            if reason:
                served = unfinished.pop(request.key)
                served.ended = now
                self._result.served.append(served)

    def _pass(self, until: float) -> None:
        passed = max(0.0, until - self._now)
        self._result.running_s += passed * self._scheduler.num_running
        self._result.cache_s += passed * self._scheduler.kv_usage
        self._now = max(self._now, until)
