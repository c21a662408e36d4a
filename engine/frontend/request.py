"""One request as the client remembers it for as long as it is unfinished: enough to submit it again to a new engine.

The owner of these facts; `client` and `resumption` write them, `AsyncLLMEngine` makes it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from dataclasses import dataclass, field

from quire.engine.frontend.generation import Generation, SampleUpdate
from quire.engine.frontend.pooling import Embedding
from quire.engine.messages import NO_KEY, Delta, KeyLimits, Media, RateState, SampleSpec, Sampling, Submit

ANYWHERE = (0, sys.maxsize)
FAR_BEHIND = 64  # updates
MOST_MERGED_TOKENS = 64  # of them as one, so that none takes long to encode


@dataclass(slots=True, eq=False)
class Request:
    request_id: str
    prompt_token_ids: list[int]
    sampling: Sampling
    samples: list[SampleSpec]
    generation: Generation | Embedding
    priority: int = 0
    key: KeyLimits = NO_KEY
    cache_salt: str = ""
    queue_timeout_s: float = 0.0
    media: list[Media] = field(default_factory=list)
    made_at: float = field(default_factory=time.perf_counter)
    rate: RateState | None = None  # where its key stands, as the door said
    started_at: float | None = None  # perf_counter when a step first took up one of its samples
    num_resumed: int = 0  # times that a new engine got it again
    # With the present engine, and what engines before it make us think of the request: see `resumption`.
    started: bool = False
    productive: bool = False
    suspicion: int = 0
    place: tuple[int, int] = ANYWHERE  # first and end of the tokens that the engine may be at
    struck: tuple[int, int] = ANYWHERE  # where all that made it suspect may have happened
    last_first: int = 0  # of the part that the engine began last
    unread_tokens: int = 0  # of the prompt, in its engine's load until the first output
    aborted: bool = False
    displaced: bool = False  # given up by a client before its engine accepted it
    updates: deque[SampleUpdate] = field(default_factory=deque)
    merging: dict[int, SampleUpdate] = field(default_factory=dict)  # by sample, which of `updates` later ones join
    error: Exception | None = None
    accepted: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def submission(self, instance: str) -> Submit:
        """What the engine `instance` gets: the unfinished samples with their tokens, and the time left in the queue."""
        samples = [SampleSpec(s.id, s.seed, self.generation.token_ids(i)) for i, s in enumerate(self.samples)
                   if not self.generation.sample_finished(i)]
        queue_timeout_s = self.queue_timeout_s
        if self.started_at is not None:
            queue_timeout_s = 0.0  # its time in the queue is over
        elif queue_timeout_s:
            queue_timeout_s = max(0.001, self.made_at + queue_timeout_s - time.perf_counter())
        return Submit(instance, self.request_id, self.prompt_token_ids, self.sampling, samples, self.priority, self.key,
                      self.cache_salt, queue_timeout_s, self.accepted.is_set(), self.suspicion > 0,
                      self.media)

    def begins(self, first: int, end: int) -> None:
        """The engine is about to compute its tokens from `first` to `end`; a step before this one may still run."""
        self.place = (first if self.place == ANYWHERE else min(first, self.last_first), end)
        self.last_first = first

    async def next_update(self) -> SampleUpdate | None:
        """None after the last."""
        while not self.updates:
            if self.error is not None:
                raise self.error
            if self.generation.finished or self.aborted:
                return None
            self.changed.clear()
            await self.changed.wait()
        update = self.updates.popleft()
        if self.merging.get(update.index) is update:
            del self.merging[update.index]
        return update

    def put(self, update: SampleUpdate) -> None:
        """For `next_update`. A reader that is far behind gets several as one: each takes 2 KB while it waits."""
        merged = self.merging.get(update.index)
        if merged is not None and len(merged.token_ids) < MOST_MERGED_TOKENS:
            merged.absorb(update)
        else:
            self.updates.append(update)
            if len(self.updates) > FAR_BEHIND:
                self.merging[update.index] = update
        self.changed.set()

    def cut_short(self) -> None:
        """A last update for each unfinished sample: what was held back of it, and that it was aborted."""
        for index, sample in enumerate(self.samples):
            update = self.generation.push(index, Delta(sample.id, [], "abort"))
            if update is not None:
                self.put(update)
        self.changed.set()

    def take_back(self) -> None:
        """Before another client gets it, when one was displaced."""
        self.displaced = False
        self.accepted.clear()

    def fail(self, error: Exception) -> None:
        self.error = error
        self.accepted.set()
        self.changed.set()
