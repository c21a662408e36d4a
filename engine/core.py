"""The core: decides what runs. Scheduler above, executor below, one `step` that overlaps them.

Used in process by `LLM`, and by `quire.engine.server` behind border 1. Knows no text and no sockets; an `owner` is
whoever should hear about a sample (a worker's identity), opaque here.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, cast

from quire.engine import pooled_sums
from quire.engine.admission import Account, Admission, most_queued_tokens
from quire.engine.config import EngineConfig, SchedulerConfig
from quire.engine.errors import NO_HEAD, InvalidRequestError, OverloadedError
from quire.engine.messages import (
    Accepted,
    Delta,
    EngineInfo,
    Part,
    PromptLogprobs,
    Rejected,
    SampleSpec,
    Status,
    Submit,
    TokenLogprobs,
)
from quire.engine.plan import NOTHING_LEFT, Logprobs, StepPlan
from quire.engine.prompt_images import Image, open_images
from quire.engine.scheduling.beam_group import BeamGroup
from quire.engine.scheduling.beam_search import Hypothesis
from quire.engine.scheduling.request import Request
from quire.engine.scheduling.scheduler import Scheduler, TokenEvent
from quire.engine.stderr import stderr
from quire.engine.step_stats import StepStats
from quire.engine.trials import Trials

if TYPE_CHECKING:
    from quire.engine.execution.executor import Executor, Launched

Owner = Hashable
Started = Callable[[list[tuple[Owner, int]], list[tuple[Owner, Part]]], None]


@dataclass(eq=False, slots=True)
class _Submission:
    """One request as the door let it in: its samples that are unfinished."""

    owner: Owner
    unfinished: dict[int, Request]  # by sample id
    account: Account
    timeout_s: float  # in the queue; 0 = none
    submitted: float
    beams: BeamGroup | None  # whose results its samples get


class EngineCore:
    def __init__(self, config: EngineConfig, executor: Executor, *, offline: bool = False, load_s: float = 0.0) -> None:
        """`offline`: nobody waits for single tokens, and the queue has no limits. See `assembly`."""
        self.config = config
        self._executor = executor
        args, windows = config.args, config.model.kv_groups.windows
        max_model_len = config.max_model_len
        if args.max_model_len is None:  # what nobody insisted on gives way to what fits
            max_model_len = min(max_model_len, config.block_need.room(executor.num_blocks))
        self.scheduler = Scheduler(SchedulerConfig(
            num_blocks=executor.num_blocks,
            block_size=args.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=max_model_len,
            enable_prefix_caching=args.enable_prefix_caching,
            windows=windows,
            num_microbatches=args.pipeline_parallel_size,
            encoder_tokens=config.encoder_tokens,
        ))
        kv_tokens = executor.num_blocks * args.block_size // len(windows)
        self._admission = Admission(
            None if offline else args.max_queued_requests,
            None if offline else most_queued_tokens(args.max_queued_tokens, kv_tokens))
        self._unfinished: defaultdict[Owner, dict[int, _Submission]] = defaultdict(dict)  # by sample id
        self._timed: dict[_Submission, None] = {}  # those that no step took up yet and that may not wait for ever
        self._trials = Trials(partial(_try, self.scheduler))
        self._stats = StepStats()
        self._in_flight: deque[tuple[StepPlan, Launched]] = deque()
        self._last_step = time.monotonic()
        self.is_sound = True  # no step was left in its middle
        self.info = EngineInfo(
            model=args.model,
            dtype=config.dtype,
            device=config.device,
            max_model_len=max_model_len,
            vocab_size=executor.vocab_size,
            num_blocks=executor.num_blocks,
            block_size=args.block_size,
            kv_tokens=kv_tokens,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_logprobs=args.max_logprobs,
            instance=uuid.uuid4().hex,
            load_s=load_s,
            generates=executor.generates,
            kv_type=config.kv_type,
        )

    def close(self) -> None:
        """Let go of the devices. Nothing may be asked of it afterwards."""
        self.is_sound = False
        self._executor.close()

    def submit(self, owner: Owner, message: Submit) -> Accepted | Rejected:
        """Take in a request, or say why not; never raises for what a caller sent."""
        ids = [sample.id for sample in message.samples]
        try:
            longest = max((len(sample.output_token_ids) for sample in message.samples), default=0)
            if not (self.info.generates or message.sampling.pooling):
                raise InvalidRequestError(NO_HEAD, "model")
            beams = message.sampling.beams
            self.scheduler.check_admissible(len(message.prompt_token_ids), message.sampling.max_tokens, longest,
                                            0 if beams is None else beams.width)
            images = open_images(message, self.config) if message.media else []
        except InvalidRequestError as error:
            return Rejected(ids, "invalid", error.message, error.param or "")
        except OverloadedError as error:
            return Rejected(ids, "overloaded", error.message, retry_after_s=error.retry_after_s, reason=error.reason)
        account = self._admission.admit(message, self.scheduler.num_waiting, self.scheduler.num_waiting_tokens)
        if isinstance(account, Rejected):
            return account
        if not self.has_work:
            self._stats.rested()
        unfinished = {sample.id: _request((owner, sample.id), message, sample, images) for sample in message.samples}
        group = _beam_group(list(unfinished.values()), message, images) if beams is not None else None
        submission = _Submission(owner, unfinished, account, message.queue_timeout_s, time.monotonic(), group)
        self._unfinished[owner].update(dict.fromkeys(ids, submission))
        if message.suspect:
            self._trials.enter(submission)
        else:
            _add(self.scheduler, submission)
        if message.queue_timeout_s:
            self._timed[submission] = None
        return Accepted(ids, account.rate(self._admission.now()))

    def abort(self, owner: Owner, ids: Iterable[int]) -> None:
        """End samples at once; unknown ones are finished already. One of a beam search takes the others with it."""
        for id in ids:
            submission = self._unfinished[owner].get(id)
            if submission is None:
                continue
            for each in [id] if submission.beams is None else list(submission.unfinished):
                self.scheduler.abort((owner, each))
                self._ended(owner, each)

    def abort_owner(self, owner: Owner) -> int:
        """End all samples of an owner that is gone; how many they were."""
        ids = list(self._unfinished[owner])
        self.abort(owner, ids)
        del self._unfinished[owner]
        return len(ids)

    def expire(self) -> list[tuple[Owner, Rejected]]:
        """Drop the requests whose time in the queue is over: who is to be told what."""
        now = time.monotonic()
        expired = []
        for submission in [s for s in self._timed if now - s.submitted > s.timeout_s]:
            ids = list(submission.unfinished)
            self.abort(submission.owner, ids)
            refusal = self._admission.overdue(ids, submission.timeout_s, self.scheduler.num_waiting)
            expired.append((submission.owner, refusal))
        return expired

    def check(self) -> None:
        """Raises RankError where a rank has ended; `step` does too, but nobody may need one for hours."""
        self._executor.check()

    def is_moving(self, since: float) -> bool:
        """Whether it has nothing to do, or a step was launched or ended after `since` (time.monotonic)."""
        return not self.has_work or self._last_step >= since

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._in_flight)

    def step(self, started: Started = lambda samples, parts: None) -> list[tuple[Owner, Delta]]:
        """Plan and launch a step, then commit the oldest one in flight, if enough are, and return what it produced.

        `started` is called before the launch, which may be the engine's end, with the samples that wait no longer and
        the parts of prompts that it computes.
        After an error here (RankError among them) the engine is of no use: nobody knows what was carried out.
        """
        assert self.is_sound
        self.is_sound = False
        deltas = self._step(started)
        self.is_sound = True
        return deltas

    def _step(self, started: Started) -> list[tuple[Owner, Delta]]:
        plan = self.scheduler.plan()
        if parts := self.scheduler.take_parts():
            started(self._take_up(self.scheduler.take_started()), list(map(_told, parts)))
        if plan is not None:
            self._stats.launched(plan, time.monotonic())
            self._in_flight.append((plan, self._executor.launch(plan)))
            self._last_step = time.monotonic()
        if not self._in_flight or (plan is not None and len(self._in_flight) <= self.config.num_steps_ahead):
            return []
        oldest, launched = self._in_flight.popleft()
        events = self.scheduler.commit(oldest, launched.result())
        self._last_step = time.monotonic()
        now = self._admission.now()
        told = [_told_of_prompt(*part) for part in self.scheduler.take_told()]
        deltas = told + self._deltas(events, now)
        for group in self.scheduler.take_ended_beams():
            deltas += self._results(group, now)
        for request, summed, is_end in self.scheduler.take_pooled():
            pooled_sums.add(request, summed)
            if is_end:
                deltas.append(self._pooled(request))
        return deltas

    def _pooled(self, request: Request) -> tuple[Owner, Delta]:
        owner, id = cast(tuple[Owner, int], request.key)
        self._trials.settled(self._unfinished[owner][id])
        self._ended(owner, id)
        return owner, Delta(id, [], "stop", num_cached_tokens=request.num_cached_tokens,
                            pooled=pooled_sums.vector(request))

    def _take_up(self, requests: list[Request]) -> list[tuple[Owner, int]]:
        self._admission.departed(len(requests), sum(request.num_prompt_tokens for request in requests))
        keys = [cast(tuple[Owner, int], request.key) for request in requests]
        for owner, id in keys:
            self._timed.pop(self._unfinished[owner][id], None)
        return keys

    def _ended(self, owner: Owner, id: int) -> None:
        submission = self._unfinished[owner].pop(id)
        del submission.unfinished[id]
        if not submission.unfinished:
            submission.account.num_running -= 1
            self._timed.pop(submission, None)
            self._trials.settled(submission)

    def _deltas(self, events: list[TokenEvent], now: int) -> list[tuple[Owner, Delta]]:
        deltas: list[tuple[Owner, Delta]] = []
        unfinished, trials = self._unfinished, self._trials
        for request, token_id, finish_reason, stop_token_id, logprobs in events:
            owner, id = cast(tuple[Owner, int], request.key)  # as `submit` made it
            token_ids = [] if token_id == NOTHING_LEFT else [token_id]
            delta = Delta(id, token_ids, finish_reason, stop_token_id)
            if logprobs is not None:
                delta.logprobs = [TokenLogprobs(*logprobs)]
            if len(request.token_ids) == request.num_prompt_tokens + 1:
                delta.num_cached_tokens = request.num_cached_tokens
            submission = unfinished[owner][id]
            if submission.account.limits_output:
                submission.account.charge_output(len(token_ids), now)
            if trials.is_on:
                trials.settled(submission)
            if finish_reason:
                self._ended(owner, id)
            deltas.append((owner, delta))
        return deltas

    def _results(self, group: BeamGroup, now: int) -> list[tuple[Owner, Delta]]:
        """All that a beam search tells: its samples' whole outputs at once."""
        deltas = []
        best: list[Hypothesis | None] = [*group.best()]
        for key, found in zip_longest(group.keys, best):
            owner, id = cast(tuple[Owner, int], key)
            if found is None:
                delta = Delta(id, [], "error")
            else:
                delta = Delta(id, found.beam.token_ids, found.finish_reason, found.stop_token_id,
                              [TokenLogprobs(*each) for each in found.beam.told],
                              group.leader.num_cached_tokens, cumulative_logprob=found.beam.total)
            self._unfinished[owner][id].account.charge_output(len(delta.token_ids), now)
            self._ended(owner, id)
            deltas.append((owner, delta))
        return deltas

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
            num_waiting_tokens=s.num_waiting_tokens,
            num_graph_steps=self._executor.num_graph_steps,
            step_seconds=self._stats.seconds.distribution(),
            step_samples=self._stats.samples.distribution(),
            step_tokens=self._stats.tokens.distribution(),
            log_lines_dropped=stderr.num_dropped,
        )


def _told_of_prompt(request: Request, first: int, found: list[Logprobs]) -> tuple[Owner, Delta]:
    owner, id = cast(tuple[Owner, int], request.key)
    tokens = [TokenLogprobs(*each) for each in found]
    return owner, Delta(id, [], prompt_logprobs=PromptLogprobs(first, tokens))


def _told(part: tuple[Request, int, int]) -> tuple[Owner, Part]:
    request, first, end = part
    owner, id = cast(tuple[Owner, int], request.key)
    return owner, Part(id, first, end)


def _request(key: Hashable, message: Submit, sample: SampleSpec, images: list[Image]) -> Request:
    return Request(key, message.prompt_token_ids, message.sampling, sample.seed,
                   output_token_ids=sample.output_token_ids, priority=message.priority, cache_salt=message.cache_salt,
                   key_name=message.key.name, weight=message.key.weight, images=images)


def _beam_group(samples: list[Request], message: Submit, images: list[Image]) -> BeamGroup:
    """With requests for the beams that are no sample's, under keys of their own. The first one's key is that of a
    sample; which beams the results come from is decided at the end."""
    beams = message.sampling.beams
    assert beams is not None
    assert 1 <= len(samples) <= beams.width, beams
    others = [_request((samples[0].key, number), message, SampleSpec(-1, 0), images)
              for number in range(len(samples), beams.width)]
    return BeamGroup([sample.key for sample in samples], samples + others)


def _add(scheduler: Scheduler, submission: _Submission) -> None:
    if submission.beams is None:
        scheduler.add(list(submission.unfinished.values()))
    else:
        scheduler.add_beams(submission.beams)


def _try(scheduler: Scheduler, suspect: _Submission) -> bool:
    """Let a suspect run, with what nobody aborted of it meanwhile."""
    if suspect.unfinished:
        _add(scheduler, suspect)
    return bool(suspect.unfinished)
