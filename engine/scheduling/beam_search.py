"""Beam search: which beams go on after a step, which are finished, and when the search is over. Pure: lists in, lists
out; no blocks, no rows, no device.

The rules are those of transformers' `generate(num_beams=...)`, version 5: each step ranks all continuations of all
beams by the sum of their log-probabilities. Of the best `width` those that end are kept as finished, and the best
`width` that do not end go on. Used by `beam_group`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from operator import attrgetter
from typing import NamedTuple

from quire.engine.messages import Beams, Sampling
from quire.engine.plan import Logprobs


@dataclass(frozen=True, slots=True)
class Beam:
    token_ids: list[int]  # the output so far; never changed
    total: float  # sum of their log-probabilities
    told: list[Logprobs]  # of each token, where the caller asked for logprobs


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished beam."""

    beam: Beam
    score: float
    finish_reason: str  # "stop" or "length"
    stop_token_id: int  # -1 where no stop token ended it


class _Candidate(NamedTuple):
    total: float
    place: int  # of the running beam that it continues
    rank: int  # of its token there; 0 = most likely


_TOTAL, _SCORE = attrgetter("total"), attrgetter("score")


class BeamSearch:
    __slots__ = ("_beams", "_max_tokens", "_min_tokens", "_num_prompt", "_num_told", "_stop_ids", "finished", "is_over",
                 "length", "running")

    def __init__(self, sampling: Sampling, num_prompt_tokens: int, max_tokens: int) -> None:
        """`max_tokens`: the longest output, which the context may make shorter than `sampling` says."""
        assert sampling.beams is not None
        self._beams: Beams = sampling.beams
        self._num_prompt = num_prompt_tokens
        self._max_tokens = max_tokens
        self._min_tokens = sampling.min_tokens
        self._num_told = sampling.logprobs
        self._stop_ids = frozenset(sampling.stop_token_ids)
        self.length = 0  # tokens of each running beam
        self.running = [Beam([], 0.0, [])]  # best first
        self.finished: list[Hypothesis] = []  # best first
        self.is_over = False

    def advance(self, found: Sequence[Logprobs]) -> list[int]:
        """Takes one step. `found`: what may follow each running beam, with the best `Beams.candidates` at least.

        Returns, of each beam that runs now, the place of the one it continues among those that ran before; none where
        the search is over.
        """
        width = self._beams.width
        self.length += 1
        is_last = self.length == self._max_tokens
        before = self.running
        running: list[Beam] = []
        parents: list[int] = []
        ended: list[Hypothesis] = []
        for number, candidate in enumerate(self._candidates(found)):
            beam = self._continued(before[candidate.place], found[candidate.place], candidate)
            stops = beam.token_ids[-1] in self._stop_ids
            if not stops and not is_last:
                if len(running) < width:
                    running.append(beam)
                    parents.append(candidate.place)
            elif number < width:
                ended.append(self._hypothesis(beam, stops=stops))
            if number + 1 >= width and (is_last or len(running) == width):
                break
        # A stable sort: of equal scores, the one that was there before is kept.
        self.finished = sorted(self.finished + ended, key=_SCORE, reverse=True)[:width]
        self.running = running
        self.is_over = not running or self._ends_early()
        return [] if self.is_over else parents

    def best(self, count: int) -> list[Hypothesis]:
        """The results, best first. Fewer only where the vocabulary has not so many continuations."""
        return self.finished[:count]

    def _candidates(self, found: Sequence[Logprobs]) -> Iterator[_Candidate]:
        """All continuations that are possible, the most likely first. Only as many are looked at as are taken: of a
        hundred beams there are ten thousand."""
        banned = self._stop_ids if self.length <= self._min_tokens else frozenset()

        def of_beam(place: int, total: float, ids: list[int], logprobs: list[float]) -> Iterator[_Candidate]:
            for rank, (token_id, logprob) in enumerate(zip(ids, logprobs)):
                if logprob > -inf and token_id not in banned:
                    yield _Candidate(total + logprob, place, rank)

        each = [of_beam(place, beam.total, ids, logprobs)
                for place, (beam, (_, _, ids, logprobs)) in enumerate(zip(self.running, found))]
        return heapq.merge(*each, key=_TOTAL, reverse=True)

    def _continued(self, beam: Beam, found: Logprobs, candidate: _Candidate) -> Beam:
        _, _, ids, logprobs = found
        rank, wanted = candidate.rank, self._num_told
        told = [*beam.told, (logprobs[rank], rank + 1, ids[:wanted], logprobs[:wanted])] if wanted >= 0 else beam.told
        return Beam([*beam.token_ids, ids[rank]], candidate.total, told)

    def _hypothesis(self, beam: Beam, *, stops: bool) -> Hypothesis:
        score = beam.total / self._norm(len(beam.token_ids) - (stops and self._beams.length_counts_prompt))
        return Hypothesis(beam, score, "stop" if stops else "length", beam.token_ids[-1] if stops else -1)

    def _norm(self, length: int) -> float:
        """What the score of an output of so many tokens is divided by."""
        counted = length + self._num_prompt if self._beams.length_counts_prompt else length
        return float(counted) ** self._beams.length_penalty

    def _ends_early(self) -> bool:
        """Whether `early_stopping` ends the search, where as many are finished as there are beams."""
        beams = self._beams
        if len(self.finished) < beams.width:
            return False
        if beams.early_stopping is True:
            return True
        is_longest = beams.early_stopping == "never" and beams.length_penalty > 0
        best = self.running[0].total / self._norm(self._max_tokens if is_longest else self.length)
        return best <= self.finished[-1].score
