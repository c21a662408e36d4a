"""Decides what each step computes, and takes in what it produced. Pure integers: no device, no text, no clock.

One token budget a step, and no phases: decode, chunked prefill and resumption all give a request some of the tokens
that it misses. Asynchronous: `plan()` for step N+1 may come before `commit()` of step N, because it depends on how many
tokens there are, never on which. Called by `quire.engine.core`; `engine/plan.py` says what a plan means.

A freed block or row can be reused at once, even while a step in flight still writes to it: every rank carries out
plans in order, so whatever a later plan puts there is written after, and read only by that plan or later ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from typing import NamedTuple

from quire.engine.config import SchedulerConfig
from quire.engine.plan import NOTHING_LEFT, Logprobs, StepPlan, StepResult
from quire.engine.scheduling.admissible import check_admissible
from quire.engine.scheduling.allocator import BlockAllocator
from quire.engine.scheduling.beam_group import BeamGroup
from quire.engine.scheduling.beam_groups import BeamGroups, members_of
from quire.engine.scheduling.block_run import BlockRun
from quire.engine.scheduling.draft import Draft
from quire.engine.scheduling.feature_cache import FeatureCache
from quire.engine.scheduling.prefix_cache import PrefixCache, Reuse
from quire.engine.scheduling.queue import WaitingQueue
from quire.engine.scheduling.request import Request, RequestStatus
from quire.engine.scheduling.running import Running
from quire.engine.scheduling.sharing import NOTHING_SHARED

# Free blocks that an admission leaves for the running requests' growth: num_blocks // this.
_RESERVE_DIVISOR = 100


class TokenEvent(NamedTuple):
    """One token for one sample that is still wanted."""

    request: Request
    token_id: int  # NOTHING_LEFT with the finish reason "error"
    finish_reason: str  # "" while the sample goes on
    stop_token_id: int  # -1 where no stop token ended it
    logprobs: Logprobs | None


class Scheduler:
    """Owns every unfinished request.

    Progress: running requests are kept in the queue's order and only the last of them is ever preempted, for the sake
    of one before it. So the first always gets its blocks, since no admissible request needs more than all. The order is
    fixed when a request is added, and of its own priority no later one comes before one that ever ran.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.num_steps = 0
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self._allocator = BlockAllocator(config.num_blocks, config.block_need,
                                         enable_prefix_caching=config.enable_prefix_caching)
        self._prefix_cache = PrefixCache(self._allocator)
        self._requests: dict[Hashable, Request] = {}
        self._waiting = WaitingQueue()
        self._running = Running(config.max_num_seqs)
        self._features = FeatureCache(config.encoder_tokens)
        self._beams = BeamGroups()
        self._in_flight: deque[Draft] = deque()
        self._told: list[tuple[Request, int, list[Logprobs]]] = []  # and not reported yet
        self._pooled: list[tuple[Request, bytes, bool]] = []  # as take_pooled reports them
        self._started: list[Request] = []  # taken up for the first time, and not reported yet
        self._parts: list[tuple[Request, int, int]] = []  # of prompts, planned and not reported yet: from, to before

    # -- what the core asks

    @property
    def has_work(self) -> bool:
        """Whether some request is unfinished or some step uncommitted."""
        return bool(self._requests or self._in_flight)

    @property
    def num_in_flight(self) -> int:
        """Steps planned and not committed."""
        return len(self._in_flight)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._requests) - len(self._running)

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt and output tokens that wait; samples that wait for their prompt's first one add none."""
        return self._waiting.num_tokens

    @property
    def kv_usage(self) -> float:
        return self._allocator.usage

    @property
    def num_encoded_images(self) -> int:
        return self._features.num_encoded

    @property
    def prefix_queries(self) -> int:
        """Prompt tokens looked up in the prefix cache."""
        return self._prefix_cache.num_query_tokens

    @property
    def prefix_hits(self) -> int:
        """Prompt tokens found there."""
        return self._prefix_cache.num_hit_tokens

    def check_admissible(self, num_prompt_tokens: int, max_tokens: int, num_output_tokens: int = 0,
                         num_beams: int = 0) -> None:
        """Raises InvalidRequestError for a request that could never be finished. `add` takes only others."""
        check_admissible(self.config, num_prompt_tokens, max_tokens, num_output_tokens, num_beams)

    def add_beams(self, group: BeamGroup) -> None:
        """Queues a beam search; its leader's key stands for all of it. It must be admissible."""
        for request in group.members:
            assert request.key not in self._requests, f"{request.key!r} is added twice"
            self._requests[request.key] = request
        self._beams.enter(group, self.config.max_model_len)
        self._prefix_cache.hash_prompt(group.leader)
        self._waiting.enter(group.members)

    def add(self, requests: list[Request]) -> None:
        """Queues the samples of one prompt, which share what is computed of it. Each must be admissible."""
        leader = requests[0]
        for request in requests:
            assert request.key not in self._requests, f"{request.key!r} is added twice"
            self._requests[request.key] = request
            request.max_total = min(request.num_prompt_tokens + request.sampling.max_tokens, self.config.max_model_len)
            if request.pools:
                request.max_total = request.num_prompt_tokens + 1
            assert request.num_total < request.max_total, request
            if request is not leader:
                request.leader = leader
        leader.followers = requests[1:]
        # Now rather than in a plan, which may let many in: the server counts the time that a submission takes.
        self._prefix_cache.hash_prompt(leader)
        self._waiting.enter(requests)

    def abort(self, key: Hashable) -> Request | None:
        """Ends a request, its blocks and row free at once (see the module's docstring); None if there is no such."""
        request = self._requests.get(key)
        if request is not None:
            self._finish(request, "abort")
        return request

    def plan(self) -> StepPlan | None:
        """The next step; None if nothing can be computed before the next `add` or `commit`."""
        draft = Draft(self.num_steps, self.config.max_num_batched_tokens,
                       names_decode_ids=self.config.num_microbatches > 1)
        self._schedule_running(draft)
        if not draft.under_pressure:
            self._admit_waiting(draft)
        shared = NOTHING_SHARED
        if self.config.windows[0] is None:
            shared = self._running.shared_beginning(self._allocator.pool.reference_counts, self.config.block_size)
        plan = draft.finish(shared)
        if not plan.rows:
            return None
        if self._beams:
            self._beams.tell(draft)
        for leader in draft.leaders:  # only now: copies precede the forward pass that fills their source
            for follower in leader.followers:
                self._waiting.push(follower)
            leader.followers = []
        for request in draft.seeing:
            self._features.release_passed(request)
        self.num_steps += 1
        self._in_flight.append(draft)
        return plan

    def take_started(self) -> list[Request]:
        """Those that steps took up for the first time since this was last asked."""
        started, self._started = self._started, []
        return started

    def take_parts(self) -> list[tuple[Request, int, int]]:
        """What steps computed of prompts since this was last asked: positions from the second to before the third."""
        parts, self._parts = self._parts, []
        return parts

    def take_told(self) -> list[tuple[Request, int, list[Logprobs]]]:
        """What committed steps told of prompts since this was last asked: of their tokens from that place on."""
        told, self._told = self._told, []
        return told

    def take_ended_beams(self) -> list[BeamGroup]:
        """The beam searches that committed steps ended since this was last asked."""
        return self._beams.take_ended()

    def take_pooled(self) -> list[tuple[Request, bytes, bool]]:
        """The sums of hidden states of committed steps since this was last asked, and whether they finish the request.
        """
        pooled, self._pooled = self._pooled, []
        return pooled

    def commit(self, plan: StepPlan, result: StepResult) -> list[TokenEvent]:
        """Takes in the oldest planned step's tokens. Those of requests that ended meanwhile are dropped.

        A request preempted meanwhile keeps its token: it was sampled from the right state, and a request with tokens
        in flight is not resumed before they are known.
        """
        draft = self._in_flight.popleft()
        assert draft.plan.step == plan.step, f"step {plan.step} is committed before step {draft.plan.step}"
        sampled, told, pooled = draft.sampled, draft.told, draft.pooled
        assert len(result.token_ids) == len(sampled), (len(result.token_ids), len(sampled))
        self._told += [(request, first, found) for request, first, found
                       in zip(told, plan.told_firsts, result.prompt_logprobs)
                       if request.status is not RequestStatus.FINISHED]
        if pooled:
            self._take_sums(pooled, result.pooled)
        events = []
        logprobs = result.logprobs
        finished = RequestStatus.FINISHED
        tokens: Iterable[tuple[int, tuple[Request, int]]] = enumerate(zip(sampled, result.token_ids))
        if self._beams:
            self._advance_beams(plan.step, sampled, logprobs)
            tokens = [item for item in tokens if item[1][0].beams is None]
        for place, (request, token_id) in tokens:
            if request.status is finished:
                continue
            if token_id == NOTHING_LEFT:
                self._finish(request, "error")
                events.append(TokenEvent(request, token_id, "error", -1, None))
                continue
            token_ids = request.token_ids
            token_ids.append(token_id)
            num_known = len(token_ids)
            if num_known >= request.register_at:
                self._prefix_cache.register(request)
            reason, stop_token_id = "", -1
            if token_id in request.stop_token_ids:
                reason, stop_token_id = "stop", token_id
            elif num_known == request.max_total:
                reason = "length"
            if reason:
                request.stop_token_id = stop_token_id
                self._finish(request, reason)
            events.append(TokenEvent(request, token_id, reason, stop_token_id, logprobs.get(place)))
        self.num_generation_tokens += len(events)
        return events

    def _take_sums(self, pooled: list[tuple[Request, bool]], sums: list[bytes]) -> None:
        for (request, is_end), summed in zip(pooled, sums, strict=True):
            if request.status is RequestStatus.FINISHED:
                continue
            if is_end:
                self._finish(request, "stop")
            self._pooled.append((request, summed, is_end))

    def _advance_beams(self, step: int, sampled: list[Request], logprobs: dict[int, Logprobs]) -> None:
        for group in self._beams.complete(step, sampled, logprobs):
            self._running.is_changed = True  # blocks are shared otherwise
            going_on = group.advance(self._allocator)
            for member in going_on:
                if len(member.token_ids) >= member.register_at:
                    self._prefix_cache.register(member)
            if not going_on:
                self._finish(group.leader, "stop")
                self._beams.ended(group)
                self.num_generation_tokens += sum(len(found.beam.token_ids) for found in group.best())

    # -- planning

    def _schedule_running(self, draft: Draft) -> None:
        """One token for each that misses one, then the rest of the budget for longer ones: a prefill stalls nobody.

        Of a pipeline's microbatches each gets its share of the first kind.
        """
        running, num_microbatches = self._running.requests, self.config.num_microbatches
        share = -(-len(running) // num_microbatches)
        prefilling = []
        for request in running:  # the list may lose its end on the way
            if not draft.budget:
                return
            num_missing = request.num_total - request.num_computed
            if request.num_total == request.max_total:
                continue  # its last token is in flight, or a beam's next one
            if num_missing > 1 or request.images_end > request.num_computed:
                # Without windows it has had blocks for all of them since it was let in.
                if request.num_slots < request.num_total and not self._grow(request, draft):
                    break
                prefilling.append(request)
            elif num_microbatches > 1 and (request.num_in_flight or draft.num_decodes == share):
                continue
            elif request.num_computed < request.num_slots or self._grow(request, draft):
                draft.decode(request)
            else:
                break
        for request in prefilling:
            if not draft.budget:
                return
            self._compute_part(request, draft)

    def _grow(self, request: Request, draft: Draft) -> bool:
        """The next blocks for a running request, at the cost of those behind it; False if it must wait.

        Those behind it are not in the plan yet. It is not preempted itself for want of a block: it keeps what it has
        until one before it needs that.
        """
        allocator = self._allocator
        allocator.leave_behind(request.blocks, request.num_computed)
        gaps = allocator.gaps(request.blocks, request.num_total)
        while allocator.pool.num_free < len(gaps.groups):
            draft.under_pressure = True
            last = self._running.requests[-1]
            if last is request or (last.beams is not None and last.beams is request.beams):
                return False
            self._preempt_last()
        draft.set_blocks(request, gaps.groups, gaps.columns, allocator.fill(request.blocks, gaps))
        request.num_slots = min([run.end for run in request.blocks]) * self.config.block_size
        return True

    def _preempt_last(self) -> None:
        """Puts the last running request back in the queue, with all its beams; it will compute its tokens again."""
        members = members_of(self._running.requests[-1])
        for member in members:
            self._give_back(member)
            member.status = RequestStatus.WAITING
            member.num_preemptions += 1
        self.num_preemptions += 1
        first = members[0]
        if first.beams is not None:
            first.beams.interrupt(self.config.block_size)
        self._waiting.push(first)

    def _admit_waiting(self, draft: Draft) -> None:
        """In order, up to the first that does not fit: passing it over could starve it."""
        waiting = self._waiting
        while draft.budget and self._running.free_rows and waiting:
            request = waiting.peek()
            if request.num_in_flight or not self._admit(request, draft):
                return
            waiting.pop()

    def _admit(self, request: Request, draft: Draft) -> bool:
        """Starts a waiting request, with blocks for all tokens known, or leaves it as it was.

        All of them, though this step may compute only some: with fewer, long prompts would get halfway in and then
        preempt each other. Behind a window, as many as it will hold at once.
        """
        others = members_of(request)[1:]
        if len(others) >= len(self._running.free_rows):
            return False
        assert request.num_in_flight == 0, "a row cannot be filled with tokens that the host does not know"
        reuse = self._prefix_cache.find(request, draft.plan.step)
        reserve = self.config.num_blocks // _RESERVE_DIVISOR if self._running else 0
        reserve += len(others) * len(self.config.windows)  # each beam's first block of its own
        if request.images_end > reuse.num_tokens and not self._features.can_start(request, reuse.num_tokens, draft):
            return False
        blocks = self._allocator.allocate(request.num_total, reuse.shared, keep_free=reserve)
        if blocks is None:
            return False
        if not request.started:
            self._started.append(request)
            self._count_prompt(request, reuse)
        self._start(request, blocks, reuse)
        for other in others:
            self._start(other, self._allocator.nothing(), self._prefix_cache.nothing())
        draft.enter(request)
        for run, shared, source in zip(blocks, reuse.shared, reuse.copied):
            draft.copy(source, run.at(shared.end))
        self._compute_part(request, draft)
        return True

    def _compute_part(self, request: Request, draft: Draft) -> None:
        first, most = request.num_computed, draft.budget
        if request.images_end > first:
            most = self._features.reach(request, most, draft)
            if not most:
                return
        draft.compute(request, most)
        self._parts.append((members_of(request)[0], first, request.num_computed))
        self._prefix_cache.register(request)

    def _count_prompt(self, request: Request, reuse: Reuse) -> None:
        """Counts a prompt the first time a sample of it runs; a sample that shares its leader's blocks adds nothing."""
        if reuse.leader is not None:
            request.num_cached_tokens = reuse.leader.num_cached_tokens
            return
        num_prompt = request.num_prompt_tokens
        request.num_cached_tokens = min(reuse.num_tokens, num_prompt)
        self.num_prompt_tokens += num_prompt
        self._prefix_cache.count(num_prompt, request.num_cached_tokens)

    def _start(self, request: Request, blocks: list[BlockRun], reuse: Reuse) -> None:
        """Gives a request what it holds while it runs; `_give_back` takes it away again."""
        request.status = RequestStatus.RUNNING
        request.blocks = blocks
        request.num_slots = min(run.end for run in blocks) * self.config.block_size
        request.num_computed = reuse.num_tokens
        request.num_registered = reuse.shared[0].end
        if reuse.leader is not None:
            request.num_told = request.num_prompt_tokens  # by the leader
            if reuse.leader.block_hashes:
                request.block_hashes = reuse.leader.block_hashes[:reuse.shared[0].end]
        request.leader = None
        self._running.enter(request)

    # -- endings

    def _give_back(self, request: Request) -> None:
        """Frees what a running request holds."""
        self._allocator.free(request.blocks)
        self._running.leave(request)
        if request.held:
            self._features.release(request)
        request.num_slots = request.num_computed = 0
        request.prompt_step = -1

    def _finish(self, request: Request, reason: str) -> None:
        """Ends a request; one of a beam search takes the others with it."""
        members = members_of(request)
        if request.status is RequestStatus.WAITING:
            self._leave_queue(members[0])
        for member in members:
            del self._requests[member.key]
            self._waiting.charge(member, member.num_output_tokens)
            if member.status is RequestStatus.RUNNING:
                self._give_back(member)
            member.status = RequestStatus.FINISHED
            member.finish_reason = reason
        if request.beams is not None:
            self._beams.leave(request.beams)
        if request.followers:
            self._hand_over(request)

    def _leave_queue(self, request: Request) -> None:
        if request.leader is not None and request in request.leader.followers:
            request.leader.followers.remove(request)
        else:
            self._waiting.remove(request)

    def _hand_over(self, leader: Request) -> None:
        """Its prompt is not computed: the next sample does that for the others."""
        first, *rest = leader.followers
        first.leader = None
        first.followers = rest
        for follower in rest:
            follower.leader = first
        leader.followers = []
        self._waiting.push(first)
