"""A step's plan while it is being written. Refuses to decide what goes into it (`scheduler`, its only caller)."""

from __future__ import annotations

from collections.abc import Iterable

from quire.engine.plan import Encode, StepPlan
from quire.engine.prompt_images import Image, PixelFile
from quire.engine.scheduling import pooling
from quire.engine.scheduling.request import Request
from quire.engine.scheduling.sharing import SharedBeginning


class Draft:
    """Rows with one token are written at once; longer ones are kept apart, and follow them when it is finished."""

    __slots__ = ("budget", "encodes_no_more", "files", "leaders", "long", "names_decode_ids", "plan", "pooled",
                 "sampled", "seeing", "told", "under_pressure")

    def __init__(self, step: int, budget: int, *, names_decode_ids: bool) -> None:
        self.plan = StepPlan(step)
        self.budget = budget
        self.names_decode_ids = names_decode_ids
        self.sampled: list[Request] = []  # parallel to the plan's rows that sample
        self.long: list[tuple[Request, int, int, bool]] = []
        self.told: list[Request] = []  # parallel to the plan's told_places
        # Parallel to the plan's pooled_places; with whether the prompt ends there.
        self.pooled: list[tuple[Request, bool]] = []
        self.leaders: list[Request] = []  # whose prompt this step completes
        self.under_pressure = False  # a running request got no block, or took another's
        self.files: list[PixelFile] = []  # that the step reads
        self.seeing: list[Request] = []  # which compute tokens of images
        self.encodes_no_more = False  # a request waits for room for an image, so those behind it encode none

    def decode(self, request: Request) -> None:
        """Gives the request the one token that it misses; most of what a step is made of."""
        if request.pools or request.tells:
            self.compute(request, 1)
            return
        plan, start = self.plan, request.num_computed
        assert start < request.num_slots, request
        self.budget -= 1
        request.num_computed = start + 1
        request.num_total += 1
        plan.rows.append(request.row)
        plan.starts.append(start)
        plan.num_tokens.append(1)
        plan.samples.append(True)
        self.sampled.append(request)
        if self.names_decode_ids:
            plan.known_ids.append(request.token_ids[start])
        if request.prompt_step < 0:
            self._computed(request)

    def compute(self, request: Request, most: int) -> None:
        """Gives the request as many of its missing tokens as the budget allows, and `most`."""
        start = request.num_computed
        num_tokens = min(request.num_total - start, self.budget, most)
        assert 0 < num_tokens <= request.num_slots - start, request
        request.num_computed = start + num_tokens
        samples = request.num_computed == request.num_total
        if samples:
            request.num_total += 1
        self.budget -= num_tokens
        if num_tokens == 1:
            self._append(request, start, 1, samples)
            if self.names_decode_ids:
                self.plan.known_ids.append(request.token_ids[start])
        else:
            self.long.append((request, start, num_tokens, samples))
        if request.prompt_step < 0:
            self._computed(request)

    def _computed(self, request: Request) -> None:
        if request.num_computed >= request.num_prompt_tokens:
            request.prompt_step = self.plan.step
            if request.followers:
                self.leaders.append(request)

    @property
    def num_decodes(self) -> int:
        """So far."""
        return len(self.plan.rows)

    def know(self, place: int, token_id: int) -> None:
        """Tells the token that the row at `place` computes, its first one."""
        self.plan.known_places.append(place)
        self.plan.known_ids.append(token_id)

    def enter(self, request: Request) -> None:
        """Puts a request that got its row and blocks into the ranks' tables."""
        self.plan.new_rows.append(request.new_row())
        self.set_all_blocks(request)

    def set_all_blocks(self, request: Request) -> None:
        for group, run in enumerate(request.blocks):
            self.set_blocks(request, [group] * len(run.blocks), range(run.first, run.end), run.blocks)

    def copy(self, source: int, target: int) -> None:
        """Copies a block, as it is after the steps before this one."""
        self.plan.copy_sources.append(source)
        self.plan.copy_targets.append(target)

    def set_blocks(self, request: Request, groups: list[int], columns: Iterable[int], blocks: list[int]) -> None:
        plan = self.plan
        plan.block_groups += groups
        plan.block_rows += [request.row] * len(blocks)
        plan.block_columns += columns
        plan.block_ids += blocks

    def finish(self, shared: SharedBeginning) -> StepPlan:
        plan = self.plan
        plan.num_decodes = len(plan.rows)
        if self.names_decode_ids:
            plan.known_places = list(range(plan.num_decodes))
        if shared.num_tokens:
            members = [place for place, row in enumerate(plan.rows) if row in shared.rows]
            if shared.is_worth_it(len(members)):
                plan.shared_places, plan.num_shared_tokens = members, shared.num_tokens
        for item in self.long:
            self._append(*item)
        return plan

    def _append(self, request: Request, start: int, num_tokens: int, samples: bool) -> None:
        plan = self.plan
        if request.tells:
            self._tell(request, start + num_tokens)
        if request.held:
            self._see(request, start, start + num_tokens)
        if request.pools:
            self._pool(request, start + num_tokens, is_end=samples)
            samples = False
        plan.rows.append(request.row)
        plan.starts.append(start)
        plan.num_tokens.append(num_tokens)
        plan.samples.append(samples)
        if samples:
            self.sampled.append(request)

    def encode(self, image: Image, first_row: int) -> None:
        """The features of an image that the step computes tokens of go into rows from that one on."""
        self.plan.encodes.append(Encode(image.file.path, image.grid, first_row))
        self.files.append(image.file)

    def _see(self, request: Request, start: int, end: int) -> None:
        """Where the features are of those of the tokens that are an image's."""
        plan = self.plan
        for first, held in request.held.items():
            low, high = max(first, start), min(first + held.num_rows, end)
            if low < high:
                plan.media_places.append(len(plan.rows))
                plan.media_firsts.append(low)
                plan.media_counts.append(high - low)
                plan.media_rows.append(held.first_row + low - first)
        self.seeing.append(request)

    def _tell(self, request: Request, end: int) -> None:
        """What is computed of a token tells of the one behind it."""
        first, end = request.num_told, min(end + 1, request.num_prompt_tokens)
        if first < end:
            plan = self.plan
            plan.told_places.append(len(plan.rows))
            plan.told_firsts.append(first)
            plan.told_counts.append(end - first)
            self.told.append(request)
            request.num_told = end

    def _pool(self, request: Request, end: int, *, is_end: bool) -> None:
        if count := pooling.num_wanted(request, end):
            self.plan.pooled_places.append(len(self.plan.rows))
            self.plan.pooled_counts.append(count)
            self.pooled.append((request, is_end))
