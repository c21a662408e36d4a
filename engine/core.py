"""The core: decides what runs. Scheduler above, executor below, one `step` that overlaps them.

Used in process by `LLM`, and by `engine.server` behind border 1. Knows no text and no sockets; an `owner` is whoever
should hear about a sample (a worker's identity), opaque here.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import cast

from engine.admission import Admission
from engine.config import EngineArgs, SchedulerConfig
from engine.errors import InvalidRequestError, OverloadedError
from engine.execution.device import prepare_cpu, return_freed_memory, settle
from engine.execution.executor import InProcessExecutor
from engine.execution.pending import Pending
from engine.messages import Accepted, Delta, EngineInfo, Rejected, Status, Submit, TokenLogprobs
from engine.plan import StepPlan
from engine.scheduling.request import Request
from engine.scheduling.scheduler import Scheduler, TokenEvent
from engine.weights.locate import resolve_model

Owner = Hashable


class EngineCore:
    def __init__(self, args: EngineArgs, progress: Callable[[str, float], None], *, bounded: bool = True) -> None:
        """Loads the model; `bounded` False lifts the queue limit (offline use).

        Raises:
            ConfigError: the configuration does not fit the model or the device.
            WeightError: the checkpoint does not fit its model.
        """
        began = time.monotonic()
        self.config = config = settle(args, resolve_model(args))
        prepare_cpu(args)
        self._executor = InProcessExecutor(config, progress)
        return_freed_memory()
        max_model_len = config.max_model_len
        if args.max_model_len is None:  # what nobody insisted on gives way to what fits
            max_model_len = min(max_model_len, self._executor.num_blocks * args.block_size)
        self.scheduler = Scheduler(SchedulerConfig(
            num_blocks=self._executor.num_blocks,
            block_size=args.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=max_model_len,
            enable_prefix_caching=args.enable_prefix_caching,
        ))
        self._admission = Admission(args.max_queued_requests if bounded else None)
        self._unfinished: defaultdict[Owner, set[int]] = defaultdict(set)  # sample ids by owner
        self._in_flight: tuple[StepPlan, Pending] | None = None
        self._last_step = time.monotonic()
        self.info = EngineInfo(
            model=args.model,
            dtype=config.dtype,
            device=config.device,
            max_model_len=max_model_len,
            vocab_size=self._executor.vocab_size,
            num_blocks=self._executor.num_blocks,
            block_size=args.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_logprobs=args.max_logprobs,
            instance=uuid.uuid4().hex,
            load_s=time.monotonic() - began,
        )

    def submit(self, owner: Owner, message: Submit) -> Accepted | Rejected:
        """Take in a request, or say why not; never raises for what a caller sent."""
        ids = [sample.id for sample in message.samples]
        try:
            longest = max((len(sample.output_token_ids) for sample in message.samples), default=0)
            self.scheduler.check_admissible(len(message.prompt_token_ids), message.sampling.max_tokens, longest)
            self._admission.check(self.scheduler.num_waiting, len(ids))
        except InvalidRequestError as error:
            return Rejected(ids, "invalid", error.message, error.param or "")
        except OverloadedError as error:
            return Rejected(ids, "limit" if error.own_limit else "overloaded", error.message,
                            retry_after_s=error.retry_after_s)
        self.scheduler.add([
            Request(
                (owner, sample.id),
                message.prompt_token_ids,
                message.sampling,
                sample.seed,
                output_token_ids=sample.output_token_ids,
                priority=message.priority,
                cache_salt=message.cache_salt,
            )
            for sample in message.samples
        ])
        self._unfinished[owner].update(ids)
        return Accepted(ids)

    def abort(self, owner: Owner, ids: Iterable[int]) -> None:
        """End samples at once; unknown ones are finished already."""
        for id in ids:
            self.scheduler.abort((owner, id))
            self._unfinished[owner].discard(id)

    def abort_owner(self, owner: Owner) -> int:
        """End all samples of an owner that is gone; how many they were."""
        ids = list(self._unfinished[owner])
        self.abort(owner, ids)
        del self._unfinished[owner]
        return len(ids)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._in_flight is not None

    def step(self) -> list[tuple[Owner, Delta]]:
        """Plan and launch step N+1, then commit step N and return what it produced."""
        plan = self.scheduler.plan()
        launched = None if plan is None else (plan, self._executor.launch(plan))
        if self.config.async_scheduling:
            launched, self._in_flight = self._in_flight, launched
        self._last_step = time.monotonic()
        if launched is None:
            return []
        plan, pending = launched
        return [self._delta(event) for event in self.scheduler.commit(plan, pending.result())]

    def _delta(self, event: TokenEvent) -> tuple[Owner, Delta]:
        request = event.request
        owner, id = cast(tuple[Owner, int], request.key)  # as `submit` made it
        delta = Delta(id, [event.token_id], event.finish_reason, event.stop_token_id)
        if event.logprobs is not None:
            delta.logprobs = [TokenLogprobs(*event.logprobs)]
        if request.num_output_tokens == 1:
            delta.num_cached_tokens = request.num_cached_tokens
        if event.finish_reason:
            self._unfinished[owner].discard(id)
        return owner, delta

    def status(self) -> Status:
        s = self.scheduler
        return Status(
            num_running=s.num_running,
            num_waiting=s.num_waiting,
            kv_usage=s.kv_usage,
            prefix_queries=s.prefix_queries,
            prefix_hits=s.prefix_hits,
            num_preemptions=s.num_preemptions,
            num_steps=s.num_steps,
            prompt_tokens=s.num_prompt_tokens,
            generation_tokens=s.num_generation_tokens,
            last_step_age_s=time.monotonic() - self._last_step,
        )
