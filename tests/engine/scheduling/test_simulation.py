"""The scheduler against a simulated device, which carries out plans literally and checks what each token attends to.

The fake model's next token is a hash of all tokens before it and the seed, and the K and V of a position are a hash
of all tokens up to it. So any wrong block, stale copy, lost or repeated token changes the output or fails a check.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from math import inf

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from quire.engine.config import SchedulerConfig
from quire.engine.errors import InvalidRequestError
from quire.engine.messages import Beams, Sampling
from quire.engine.plan import Logprobs, StepPlan, StepResult
from quire.engine.scheduling.beam_group import BeamGroup
from quire.engine.scheduling.beam_search import BeamSearch, Hypothesis
from quire.engine.scheduling.prefix_index import extend_hashes
from quire.engine.scheduling.request import Request, RequestStatus
from quire.engine.scheduling.scheduler import Scheduler

VOCAB_SIZE = 11
# How many histories: enough to meet every rule at each run, and many more now and then.
FEW_OR_MANY = pytest.mark.parametrize("num_seeds", [60, pytest.param(5000, marks=[
    pytest.mark.slow, pytest.mark.timeout(1800)])])


def chain(token_ids: list[int]) -> list[int]:
    """What K and V of each position are a function of."""
    value, values = 1, []
    for token_id in token_ids:
        value = hash((value, token_id))
        values.append(value)
    return values


def next_token(token_ids: list[int], seed: int) -> int:
    return hash((chain(token_ids)[-1], seed, len(token_ids))) % VOCAB_SIZE


def next_logprobs(token_ids: list[int], seed: int, count: int) -> Logprobs:
    """The likeliest tokens, as a beam search asks for them. Some are equally likely, some impossible."""
    value = hash((chain(token_ids)[-1], seed))
    found = [(-(hash((value, token_id)) % 40) / 8 or -inf, token_id) for token_id in range(VOCAB_SIZE)]
    found.sort(reverse=True)
    return 0.0, 1, [token_id for _, token_id in found[:count]], [logprob for logprob, _ in found[:count]]


def undisturbed_beams(prompt: list[int], sampling: Sampling, max_model_len: int) -> list[Hypothesis]:
    """The results of a beam search by itself: rules alone, no blocks and no rows."""
    assert sampling.beams is not None
    search = BeamSearch(sampling, len(prompt), min(sampling.max_tokens, max_model_len - len(prompt)))
    while not search.is_over:
        search.advance([next_logprobs(prompt + beam.token_ids, 0, sampling.beams.candidates)
                        for beam in search.running])
    return search.best(sampling.beams.width)


def undisturbed(request: Request, max_model_len: int) -> tuple[list[int], str]:
    """The tokens and finish reason of a request that runs alone."""
    token_ids = request.token_ids.copy()
    if request.sampling.pooling:
        return token_ids, "stop"
    limit = min(request.num_prompt_tokens + request.sampling.max_tokens, max_model_len)
    while True:
        token_ids.append(next_token(token_ids, request.seed))
        if token_ids[-1] in request.sampling.stop_token_ids:
            return token_ids, "stop"
        if len(token_ids) == limit:
            return token_ids, "length"


class SimulatedDevice:
    """Carries a plan out in the order of its docstring. A block holds chain values of whatever group it is in."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.cache: dict[tuple[int, int], tuple[int, int]] = {}  # (block, offset) -> group, chain value
        self.tokens: dict[int, list[int]] = {}  # row -> token ids, sampled ones included
        self.told: dict[int, dict[int, int]] = {}  # row -> position -> what a rank knows that never samples
        self.beams: dict[int, int] = {}  # row -> the candidates that it yields
        self.seeds: dict[int, int] = {}
        self.tables: dict[tuple[int, int], dict[int, int]] = {}  # group, row -> column -> block
        self.groups = range(len(config.windows))

    def slot(self, group: int, row: int, position: int) -> tuple[int, int]:
        column, offset = divmod(position, self.config.block_size)
        return self.tables[group, row][column], offset

    def seen(self, group: int, start: int, end: int) -> range:
        """What the tokens from start to before end attend to."""
        window = self.config.windows[group]
        return range(0 if window is None else max(0, start - window + 1), end)

    def run(self, plan: StepPlan) -> StepResult:
        self.check_shape(plan)
        for source, target in zip(plan.copy_sources, plan.copy_targets):
            for offset in range(self.config.block_size):
                self.cache[target, offset] = self.cache.get((source, offset), (0, 0))
        for new in plan.new_rows:
            assert new.sampling.beams is None or self.tokens[new.row] == new.token_ids
            self.tokens[new.row] = new.token_ids.copy()
            self.told[new.row] = dict(enumerate(new.token_ids))
            self.beams.pop(new.row, None)
            if new.sampling.beams is not None:
                self.beams[new.row] = new.sampling.beams.candidates
            self.seeds[new.row] = new.seed
            for group in self.groups:
                self.tables[group, new.row] = {}
        for group, row, column, block in zip(plan.block_groups, plan.block_rows, plan.block_columns, plan.block_ids):
            self.tables[group, row][column] = block
        spans = list(zip(plan.rows, plan.starts, plan.num_tokens))
        for place, token_id in zip(plan.known_places, plan.known_ids):
            self.told[plan.rows[place]][plan.starts[place]] = token_id
        self.check_known(plan, spans)
        self.write(spans)
        for row, start, num_tokens in spans:
            length = start + num_tokens
            right = chain(self.tokens[row][:length])
            for group in self.groups:
                for position in self.seen(group, start, length):
                    found = self.cache[self.slot(group, row, position)]
                    assert found == (group, right[position]), f"row {row} attends to tokens that are not its own"
        result = StepResult([])
        for (row, start, num_tokens), samples in zip(spans, plan.samples):
            if samples:
                assert len(self.tokens[row]) == start + num_tokens
                if row in self.beams:
                    result.logprobs[len(result.token_ids)] = next_logprobs(self.tokens[row], 0, self.beams[row])
                result.token_ids.append(next_token(self.tokens[row], self.seeds[row]))
                self.tokens[row].append(result.token_ids[-1])
        result.pooled = [self.sum_of(plan, *each) for each in zip(plan.pooled_places, plan.pooled_counts)]
        return result

    def sum_of(self, plan: StepPlan, place: int, count: int) -> bytes:
        """Instead of a sum, what is summed: of which tokens it is can be told afterwards."""
        row, start, num_tokens = plan.rows[place], plan.starts[place], plan.num_tokens[place]
        assert 0 < count <= num_tokens
        assert not plan.samples[place]
        return json.dumps(chain(self.tokens[row][:start + num_tokens])[-count:]).encode()

    def check_known(self, plan: StepPlan, spans: list[tuple[int, int, int]]) -> None:
        """That the ranks are told the tokens that they cannot have sampled."""
        assert len(plan.known_places) == len(set(plan.known_places))
        for row, start, num_tokens in spans:
            if self.config.num_microbatches > 1 or row in self.beams:
                known = [self.told[row].get(position) for position in range(start, start + num_tokens)]
                assert known == self.tokens[row][start:start + num_tokens], f"a rank does not know row {row}"

    def continue_beams(self, scheduler: Scheduler) -> None:
        """The tokens that the host chose; what the ranks are told of them is checked apart."""
        for request in scheduler._running.requests:
            if request.beams is not None:
                self.tokens[request.row] = request.token_ids.copy()

    def write(self, spans: list[tuple[int, int, int]]) -> None:
        written: dict[int, int] = {}  # block -> row
        for row, start, num_tokens in spans:
            values = chain(self.tokens[row][:start + num_tokens])
            assert len(values) == start + num_tokens, "a token is computed before it is sampled"
            for group in self.groups:
                for position in range(start, start + num_tokens):
                    block, offset = self.slot(group, row, position)
                    assert written.setdefault(block, row) == row, f"two rows write to block {block}"
                    self.cache[block, offset] = group, values[position]

    def check_shape(self, plan: StepPlan) -> None:
        config = self.config
        assert 0 < sum(plan.num_tokens) <= config.max_num_batched_tokens
        assert len(plan.rows) == len(set(plan.rows)) <= config.max_num_seqs
        assert len(plan.rows) == len(plan.starts) == len(plan.num_tokens) == len(plan.samples)
        assert [n == 1 for n in plan.num_tokens] == [i < plan.num_decodes for i in range(len(plan.rows))]
        assert all(0 <= row < config.max_num_seqs for row in plan.rows)
        assert all(0 <= block < config.num_blocks for block in plan.block_ids)
        assert len(plan.block_groups) == len(plan.block_rows) == len(plan.block_columns) == len(plan.block_ids)
        assert len(plan.copy_targets) == len(set(plan.copy_targets))
        assert not set(plan.copy_sources) & set(plan.copy_targets)


def check_holdings(scheduler: Scheduler) -> None:
    """No block leaked, none owned twice but by sharing, nothing held by those that do not run."""
    pool = scheduler._allocator.pool
    held = Counter(block for request in scheduler._running.requests for run in request.blocks for block in run.blocks)
    assert pool.reference_counts == [held[block] for block in range(pool.num_blocks)]
    assert sorted(pool.free_blocks()) == [block for block in range(pool.num_blocks) if not held[block]]
    for beam in (request for request in scheduler._running.requests if request.beams is not None):
        named: list[bytes] = []
        extend_hashes(named, beam.token_ids, beam.num_registered, scheduler.config.block_size, beam.root)
        assert beam.block_hashes[:beam.num_registered] == named, "a block is known by another beam's tokens"
    assert scheduler.kv_usage == 1 - pool.num_free / pool.num_blocks
    need = scheduler.config.block_need
    for request in scheduler._running.requests:
        for group, run in enumerate(request.blocks):
            assert len(run.blocks) <= need.most_columns(group), "more than a window and a step need"
    rows = [request.row for request in scheduler._running.requests]
    assert sorted(rows + scheduler._running.free_rows) == list(range(scheduler.config.max_num_seqs))
    assert [r.order for r in scheduler._running.requests] == sorted(r.order for r in scheduler._running.requests)
    for request in scheduler._requests.values():
        assert request.num_computed < request.num_total <= request.max_total
        if request.status is not RequestStatus.RUNNING:
            assert not request.blocks
            assert request.row == -1


@dataclass
class Group:
    """Samples of one prompt, and the loop turns at which they come and at which some of them are aborted."""

    turn: int
    prompt: list[int]
    num_samples: int
    sampling: Sampling
    outputs: list[int]
    priority: int
    key_name: str = ""
    aborts: dict[int, int] = field(default_factory=dict)  # sample -> turn

    @property
    def beams(self) -> Beams | None:
        return self.sampling.beams


@st.composite
def groups(draw: st.DrawFn) -> Group:
    base = draw(st.sampled_from([[1, 2, 3, 4, 5, 6, 7, 8] * 4, [1, 2, 3, 4, 9, 9, 9, 9] * 4]))
    if pooling := draw(st.sampled_from(["", "", "", "last", "mean"])):
        sampling = Sampling(max_tokens=0, pooling=pooling)
        return Group(draw(st.integers(0, 25)), base[:draw(st.integers(1, 32))], 1, sampling, [], draw(
            st.sampled_from([0, 0, 0, -1, 1])), aborts=draw(st.sampled_from([{}, {}, {0: 9}])))
    num_samples = draw(st.sampled_from([1, 1, 2, 3, 4]))
    stops = draw(st.sampled_from([(), (0,), (1, 2, 3)]))
    beams = None
    if draw(st.booleans()):
        beams = Beams(num_samples, min(num_samples + len(stops), VOCAB_SIZE),
                      draw(st.sampled_from([1.0, 0.0, -1.0])), draw(st.sampled_from([False, True, "never"])))
    return Group(
        turn=draw(st.integers(0, 25)),
        prompt=base[:draw(st.integers(1, 28))],
        num_samples=num_samples,
        sampling=Sampling(max_tokens=draw(st.integers(1, 14)), stop_token_ids=stops, beams=beams),
        outputs=[] if beams else draw(st.sampled_from([[], [], [], [4], [7, 8, 9]])),
        priority=draw(st.sampled_from([0, 0, 0, -1, 1])),
        key_name=draw(st.sampled_from(["", "", "a", "b"])),
        aborts=draw(st.dictionaries(st.integers(0, num_samples - 1), st.integers(0, 60), max_size=2)),
    )


WINDOWS = st.sampled_from([(None,), (None,), (4,), (None, 5), (None, 3, 8), (1, 2)])

CONFIGS = st.builds(
    SchedulerConfig,
    num_blocks=st.integers(4, 40),
    block_size=st.sampled_from([1, 2, 4]),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.one_of(st.integers(1, 12), st.integers(1, 64)),
    max_model_len=st.integers(8, 48),
    enable_prefix_caching=st.booleans(),
    windows=WINDOWS,
    num_microbatches=st.sampled_from([1, 1, 2, 3]),
)


class Simulation:
    """One run: groups come and are aborted at their turns; up to `depth` steps are left uncommitted."""

    def __init__(self, config: SchedulerConfig, groups: list[Group], depth: int) -> None:
        self.scheduler = Scheduler(config)
        self.device = SimulatedDevice(config)
        self.groups = groups
        self.depth = depth
        self.in_flight: list[tuple[StepPlan, StepResult]] = []
        self.expected: dict[Hashable, tuple[list[int], str]] = {}
        self.requests: dict[Hashable, Request] = {}
        self.ended: dict[Hashable, str] = {}
        self.searches: dict[int, BeamGroup] = {}  # by group
        self.num_copies = 0
        self.pooled: defaultdict[Hashable, list[int]] = defaultdict(list)

    def run(self) -> None:
        turn = 0
        last = max((g.turn for g in self.groups), default=0)
        while turn <= last or self.scheduler.has_work:
            for number, group in enumerate(self.groups):
                if group.turn == turn:
                    self.arrive(number)
                for sample, abort_turn in group.aborts.items():
                    if abort_turn == turn:
                        self.abort(number, sample)
            check_holdings(self.scheduler)
            self.step()
            turn += 1
            assert turn < 3000, "no progress"

    def step(self) -> None:
        """Plans a step, and commits as many as are to be over before the next."""
        plan = self.scheduler.plan()
        check_holdings(self.scheduler)
        self.device.continue_beams(self.scheduler)
        if plan is not None:
            self.in_flight.append((plan, self.device.run(plan)))
            self.num_copies += len(plan.copy_sources)
        elif self.scheduler.num_waiting or self.scheduler.num_running:
            assert self.in_flight, "nothing runs, nothing is in flight, and requests are unfinished"
        allowed = self.depth if plan is not None else max(len(self.in_flight) - 1, 0)
        while len(self.in_flight) > allowed:
            self.commit()

    def arrive(self, number: int) -> None:
        """The samples of a group come, if they can ever be served."""
        config, group = self.scheduler.config, self.groups[number]
        try:
            self.scheduler.check_admissible(len(group.prompt), group.sampling.max_tokens, len(group.outputs),
                                            group.num_samples if group.beams else 0)
        except InvalidRequestError:
            return
        if group.beams:
            self.add_beams(number, group)
            return
        requests = [Request((number, sample), group.prompt, group.sampling, 100 * number + sample,
                            output_token_ids=group.outputs if sample % 2 == 0 else [],
                            priority=group.priority, key_name=group.key_name)
                    for sample in range(group.num_samples)]
        for request in requests:
            self.requests[request.key] = request
            self.expected[request.key] = undisturbed(request, config.max_model_len)
        self.scheduler.add(requests)

    def abort(self, number: int, sample: int) -> None:
        """Of a beam search all; nothing of what has ended or never came."""
        key = (number, sample)
        if key in self.ended:
            return
        if number in self.searches:
            self.scheduler.abort(key)
            self.ended |= dict.fromkeys(self.searches[number].keys, "abort")
        elif key in self.requests:
            assert self.scheduler.abort(key) is self.requests[key]
            self.ended[key] = "abort"

    def add_beams(self, number: int, group: Group) -> None:
        members = [Request((number, sample), group.prompt, group.sampling, 0, priority=group.priority,
                           key_name=group.key_name) for sample in range(group.num_samples)]
        self.searches[number] = BeamGroup([member.key for member in members], members)
        self.scheduler.add_beams(self.searches[number])

    def commit(self) -> None:
        plan, result = self.in_flight.pop(0)
        for event_ in self.scheduler.commit(plan, result):
            key = event_.request.key
            assert key not in self.ended, "a token after the end"
            assert event_.token_id == event_.request.token_ids[-1]
            if event_.finish_reason:
                self.ended[key] = event_.finish_reason
        for search in self.scheduler.take_ended_beams():
            assert not self.ended.keys() & search.keys
            self.ended |= dict.fromkeys(search.keys, "beams")
        for request, summed, is_end in self.scheduler.take_pooled():
            assert request.key not in self.ended, "a part after the end"
            self.pooled[request.key] += json.loads(summed)
            if is_end:
                self.ended[request.key] = request.finish_reason
        check_holdings(self.scheduler)

    def check_outputs(self) -> None:
        beams = {key for search in self.searches.values() for key in search.keys}
        assert self.ended.keys() == self.requests.keys() | beams
        max_model_len = self.device.config.max_model_len
        for number, search in self.searches.items():
            group = self.groups[number]
            if self.ended[number, 0] != "abort":
                assert search.best() == undisturbed_beams(group.prompt, group.sampling, max_model_len)
        for key, request in self.requests.items():
            token_ids, reason = self.expected[key]
            assert request.status is RequestStatus.FINISHED
            assert request.finish_reason == self.ended[key]
            if self.ended[key] == "abort":
                assert request.token_ids == token_ids[:len(request.token_ids)]
                continue
            assert (request.token_ids, self.ended[key]) == (token_ids, reason)
            if request.pools:
                every = chain(token_ids)
                assert self.pooled[key] == (every[-1:] if request.sampling.pooling == "last" else every)
        assert self.scheduler.kv_usage == 0
        assert self.scheduler.num_running == self.scheduler.num_waiting == 0
        assert not self.scheduler._waiting


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(CONFIGS, st.lists(groups(), min_size=1, max_size=7), st.integers(0, 2))
def test_every_request_gets_the_tokens_of_an_undisturbed_run(config: SchedulerConfig, groups: list[Group],
                                                             depth: int) -> None:
    simulation = Simulation(config, groups, depth)
    simulation.run()
    simulation.check_outputs()
    event(f"preempted: {simulation.scheduler.num_preemptions > 0}")
    event(f"beams preempted: {any(s.leader.num_preemptions for s in simulation.searches.values())}")
    event(f"prefix hits: {simulation.scheduler.prefix_hits > 0}")


def crowded(rng: random.Random, windows: tuple[int | None, ...] = (None,), beams_share: float = 0.0) -> Simulation:
    """Many samples at once, over a cache that is hardly larger than one of them."""
    block_size = rng.choice([1, 2, 4])
    config = SchedulerConfig(
        num_blocks=len(windows) * rng.randint(40, 56) // block_size, block_size=block_size,
        max_num_seqs=rng.randint(2, 8),
        max_num_batched_tokens=rng.choice([1, 3, 7, 16, 64]), max_model_len=40,
        enable_prefix_caching=rng.random() < 0.5, windows=windows)
    base = [rng.randrange(VOCAB_SIZE) for _ in range(24)]
    groups = []
    for _ in range(rng.randint(3, 8)):
        prompt = base[:rng.randint(0, 16)] + [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 6))]
        if rng.random() < 0.2:
            groups.append(Group(rng.randint(0, 12), prompt * 2, 1,
                                Sampling(max_tokens=0, pooling=rng.choice(["last", "mean"])), [], rng.choice([0, 1])))
            continue
        num_samples = rng.choice([1, 1, 2, 3, 5])
        stops: tuple[int, ...] = rng.choice([(), (), (0,)])
        beams = Beams(num_samples, num_samples + len(stops)) if rng.random() < beams_share else None
        groups.append(Group(
            turn=rng.randint(0, 12), prompt=prompt, num_samples=num_samples,
            sampling=Sampling(max_tokens=rng.randint(2, 24), stop_token_ids=stops, beams=beams),
            outputs=[3] * rng.choice([0, 0, 1]) if beams is None else [], priority=rng.choice([0, 0, 0, 1, -1]),
            key_name=rng.choice("aab"),
            aborts={rng.randrange(num_samples): rng.randint(0, 60)} if rng.random() < 0.3 else {}))
    return Simulation(config, groups, depth=rng.randint(0, 2))


@FEW_OR_MANY
@pytest.mark.parametrize("windows", [(None,), (None, 6)])
def test_requests_in_a_crowd_get_the_tokens_of_an_undisturbed_run(windows: tuple[int | None, ...],
                                                                  num_seeds: int) -> None:
    num_preemptions = num_hits = num_copies = 0
    for seed in range(num_seeds):
        simulation = crowded(random.Random(seed), windows)
        simulation.run()
        simulation.check_outputs()
        num_preemptions += simulation.scheduler.num_preemptions
        num_hits += simulation.scheduler.prefix_hits
        num_copies += simulation.num_copies
    assert min(num_preemptions, num_hits, num_copies) > num_seeds, "the crowd is too small to try anything"


@FEW_OR_MANY
@pytest.mark.parametrize("windows", [(None,), (None, 6)])
def test_beams_in_a_crowd_end_as_they_would_alone(windows: tuple[int | None, ...], num_seeds: int) -> None:
    num_preempted = num_ended = num_copies = 0
    for seed in range(num_seeds):
        simulation = crowded(random.Random(seed), windows, beams_share=0.5)
        simulation.run()
        simulation.check_outputs()
        num_preempted += sum(search.leader.num_preemptions for search in simulation.searches.values())
        num_ended += len(simulation.searches)
        num_copies += simulation.num_copies
    assert min(num_preempted, num_ended, num_copies) >= num_seeds / 20, "the crowd is too small to try anything"


@settings(max_examples=25)
@given(st.integers(0, 2), st.booleans(), st.integers(1, 40), st.integers(2, 5))
def test_with_blocks_for_one_maximal_request_the_oldest_always_gets_on(depth: int, caching: bool, budget: int,
                                                                       num_requests: int) -> None:
    config = SchedulerConfig(num_blocks=8, block_size=4, max_num_seqs=4, max_num_batched_tokens=budget,
                             max_model_len=32, enable_prefix_caching=caching)
    simulation = Simulation(config, [Group(0, [i + 1] * 6, 1, Sampling(max_tokens=26), [], 0)
                                     for i in range(num_requests)], depth)
    simulation.run()
    simulation.check_outputs()
    assert list(simulation.ended) == list(simulation.requests), "a later one ended earlier, and all need the same"
    assert simulation.requests[0, 0].num_preemptions == 0
