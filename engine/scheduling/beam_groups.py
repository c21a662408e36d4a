"""The beam searches that are unfinished, as plans and results concern all of them. Called by `scheduler` alone.

Refuses to know one search's rows and blocks (`beam_group`) and its beams (`beam_search`).
"""

from __future__ import annotations

from quire.engine.plan import Logprobs
from quire.engine.scheduling.beam_group import BeamGroup
from quire.engine.scheduling.draft import Draft
from quire.engine.scheduling.request import Request, RequestStatus


def members_of(request: Request) -> list[Request]:
    """Those that run, wait and end together: the beams of a search, the first of which is the one that queues; of any
    other request itself alone."""
    return [request] if request.beams is None else request.beams.members


class BeamGroups:
    __slots__ = ("_ended", "_unfinished")

    def __init__(self) -> None:
        self._unfinished: set[BeamGroup] = set()
        self._ended: list[BeamGroup] = []  # by themselves, and not taken yet

    def __bool__(self) -> bool:
        """Whether any is unfinished."""
        return bool(self._unfinished)

    def enter(self, group: BeamGroup, max_model_len: int) -> None:
        leader = group.leader
        group.start(min(leader.num_prompt_tokens + leader.sampling.max_tokens, max_model_len))
        self._unfinished.add(group)

    def leave(self, group: BeamGroup) -> None:
        self._unfinished.remove(group)

    def ended(self, group: BeamGroup) -> None:
        """Notes that it ended by itself, for `take_ended`."""
        self._ended.append(group)

    def take_ended(self) -> list[BeamGroup]:
        ended, self._ended = self._ended, []
        return ended

    def tell(self, draft: Draft) -> None:
        """Puts into a plan that is about to be finished what the ranks must know for the rows of beams."""
        rows = {member.row: (group, member) for group in self._unfinished for member in group.members}
        for place, row in enumerate(draft.plan.rows):
            if row in rows:
                group, member = rows[row]
                group.tell(draft, place, member)

    @staticmethod
    def complete(step: int, sampled: list[Request], logprobs: dict[int, Logprobs]) -> list[BeamGroup]:
        """Takes what a step found for each of the requests that it sampled for: the groups that now have the results of
        all their beams, and can go on."""
        return [request.beams for place, request in enumerate(sampled)
                if request.beams is not None and request.status is not RequestStatus.FINISHED
                and request.beams.take(step, request, logprobs[place])]
