"""The rows of one beam search: each running beam is a request that holds a row and blocks.

A beam is never more than one token from its `max_total`, so the scheduler does not plan it a step ahead: its next
token is chosen when the results of all beams are in. Then a beam goes on in the row of the one that it continues, or,
where that row is taken, in another one: it shares the full blocks, and gets a copy to write on in of the last one where
that is partly full.
Refuses to decide which beams go on (`beam_search`) and who gets blocks (`scheduler`, the only caller).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from quire.engine.plan import Logprobs
from quire.engine.scheduling.allocator import BlockAllocator
from quire.engine.scheduling.beam_search import BeamSearch, Hypothesis
from quire.engine.scheduling.draft import Draft
from quire.engine.scheduling.request import Request


@dataclass(frozen=True, slots=True)
class _Move:
    """What the ranks do not know yet of a row whose beam continues another row's."""

    is_new: bool  # they know nothing of it
    column: int = 0  # of its block tables, for which it gets copies of the partly full blocks `sources`, a group each
    sources: tuple[int, ...] = ()


class BeamGroup:
    """`members`: as many requests as there are beams. The first computes the prompt; the others hold rows only until
    then. After preemption the prompt is computed again, and then what each beam had produced."""

    __slots__ = ("_awaited", "_found", "_is_behind", "_live", "_moves", "keys", "members", "search")

    def __init__(self, keys: Sequence[Hashable], members: list[Request]) -> None:
        """`keys`: of the samples that get the results, best first."""
        self.keys = list(keys)
        self.members = members
        self.search: BeamSearch | None = None  # set by `start`
        self._live: list[Request] = members[:1]  # parallel to the search's running beams
        self._is_behind = False  # the search has gone further than the live ones, which were preempted
        self._awaited: dict[Request, int] = {}  # the step whose result each of them waits for
        self._found: dict[Request, Logprobs] = {}
        self._moves: dict[Request, _Move] = {}
        for member in members:
            member.beams = self

    @property
    def leader(self) -> Request:
        return self.members[0]

    @property
    def width(self) -> int:
        return len(self.members)

    def start(self, longest: int) -> None:
        """`longest`: tokens of prompt and output."""
        leader = self.leader
        self.search = BeamSearch(leader.sampling, leader.num_prompt_tokens, longest - leader.num_prompt_tokens)
        self._rest()

    def interrupt(self, block_size: int) -> None:
        """Its rows and blocks are gone, and what steps in flight find is of no use."""
        self._live = self.members[:1]
        self._is_behind = self._searching.length > 0
        self._awaited.clear()
        self._found.clear()
        self._moves.clear()
        del self.leader.block_hashes[self.leader.num_prompt_tokens // block_size:]
        self._rest()

    def best(self) -> list[Hypothesis]:
        return self._searching.best(len(self.keys))

    @property
    def _searching(self) -> BeamSearch:
        assert self.search is not None, "start() first"
        return self.search

    def _rest(self) -> None:
        """The first has its prompt to compute, the others nothing."""
        for member in self.members:
            del member.token_ids[member.num_prompt_tokens:]
            member.num_total = member.max_total = member.num_prompt_tokens
            member.num_told = max(member.num_told, 1 if member is self.leader else member.num_prompt_tokens)
        self.leader.max_total += 1

    # -- plans

    def tell(self, draft: Draft, place: int, member: Request) -> None:
        """What the ranks must know for the row at `place` of a plan that is about to be finished."""
        plan = draft.plan
        if (move := self._moves.pop(member, None)) is not None:
            if move.is_new:
                draft.enter(member)
            else:
                draft.set_all_blocks(member)
            for run, source in zip(member.blocks, move.sources):
                draft.copy(source, run.at(move.column))
        if plan.num_tokens[place] == 1 and not draft.names_decode_ids:
            draft.know(place, member.token_ids[plan.starts[place]])
        if plan.samples[place]:
            self._awaited[member] = plan.step

    # -- results

    def take(self, step: int, member: Request, found: Logprobs) -> bool:
        """What one row found; whether all have. Of a step from before a preemption it is dropped."""
        if self._awaited.get(member) != step:
            return False
        del self._awaited[member]
        self._found[member] = found
        return len(self._found) == len(self._live)

    def advance(self, allocator: BlockAllocator) -> list[Request]:
        """Once all results are in: the members that have a token, or tokens, to compute now; none where the search is
        over."""
        search = self._searching
        if self._is_behind:
            self._is_behind = False
            parents = [0] * len(search.running)
            self._moves[self.leader] = _Move(is_new=True)
        else:
            parents = search.advance([self._found[member] for member in self._live])
        self._found.clear()
        if parents:
            self._assign(parents, allocator)
        return self._live if parents else []

    def _assign(self, parents: list[int], allocator: BlockAllocator) -> None:
        """Gives each running beam a member: the one that it continues, or one whose beam goes no further."""
        before = self._live
        were_live = set(before)
        kept = {before[parent] for parent in parents}
        spare = [member for member in self.members if member not in kept]
        live, branches = [], []
        for parent, beam in zip(parents, self._searching.running):
            member = before[parent]
            if member in kept:
                kept.remove(member)
                self._go_on(member, beam.token_ids)
            else:
                source, member = member, spare.pop(0)
                branches.append((member, source, beam.token_ids))
            live.append(member)
        for member, source, token_ids in branches:
            self._branch(member, source, token_ids, allocator, is_new=member not in were_live)
        for member in were_live.intersection(spare):
            self._idle(member, allocator)
        self._live = live

    @staticmethod
    def _go_on(member: Request, output: list[int]) -> None:
        member.token_ids[member.num_prompt_tokens:] = output
        member.num_total = len(member.token_ids)
        member.max_total = member.num_total + 1

    def _branch(self, member: Request, source: Request, output: list[int], allocator: BlockAllocator, *,
                is_new: bool) -> None:
        runs, partial = allocator.fork(source.blocks, source.num_computed)
        allocator.free(member.blocks)
        member.blocks = runs
        member.num_computed = source.num_computed
        member.num_slots = min(run.end for run in runs) * allocator.need.block_size
        member.prompt_step = source.prompt_step
        member.block_hashes = source.block_hashes.copy()
        member.num_registered, member.register_at = source.num_registered, source.register_at
        self._go_on(member, output)
        self._moves[member] = _Move(is_new, source.num_computed // allocator.need.block_size, partial)

    def _idle(self, member: Request, allocator: BlockAllocator) -> None:
        """There are fewer beams than before: a tiny vocabulary has no more."""
        allocator.free(member.blocks)
        member.blocks = allocator.nothing()
        member.num_computed = member.num_slots = 0
        member.num_total = member.max_total = len(member.token_ids)
