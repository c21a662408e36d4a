"""The rows of the request table whose text follows a grammar, and what each may draw next.

A matcher has seen every token of its output but those that are still on the device. The step that draws the next one is
launched before the one before it has ended: while the device computes, the host waits for the latter's token, and works
out the masks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import structlog
from llguidance import LLExecutor, LLMatcher, LLTokenizer

from quire.engine.execution.pending import Pending
from quire.engine.grammar.limits import LIMITS
from quire.engine.plan import NOTHING_LEFT, NewRow
from quire.engine.sampling.processor import Following

_MOST_THREADS = 8

log = structlog.get_logger("engine")


@dataclass(slots=True)
class _Row:
    matcher: Future[LLMatcher]  # made while the prompt is computed
    drawn: tuple[Pending, int] | None = None  # a step, and whose place in it: its token is not the matcher's yet
    failed: bool = False


class GrammarRows:
    def __init__(self, vocabulary: Callable[[], LLTokenizer], vocab_size: int) -> None:
        """`vocabulary` is called once, in another thread, when the first such row comes or `prepare` is called."""
        threads = max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // 2))
        self._num_words = -(-vocab_size // 32)
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._vocabulary = cache(vocabulary)  # asked for by that one thread only
        self._masking = LLExecutor(threads)
        self._rows: dict[int, _Row] = {}

    def prepare(self) -> None:
        """Makes the first such row wait no longer than others."""
        self._compiling.submit(self._vocabulary)

    def enter(self, new_rows: Iterable[NewRow]) -> None:
        for new in new_rows:
            self._rows.pop(new.row, None)
            if new.sampling.grammar:
                output = new.token_ids[new.num_prompt_tokens:]
                self._rows[new.row] = _Row(self._compiling.submit(self._matcher, new.sampling.grammar, output))

    def has_any(self, rows: Iterable[int]) -> bool:
        return bool(self._rows) and not self._rows.keys().isdisjoint(rows)

    def following(self, rows: Iterable[int]) -> dict[int, Following]:
        """Of those of `rows` that follow a grammar. One that cannot be followed, or not within its limits, allows
        nothing, which ends its sample."""
        following = [row for row in rows if row in self._rows]
        matchers = [self._up_to_date(self._rows[row]) for row in following]
        masks = np.zeros((len(following), self._num_words), np.int32)
        asked = [(matcher, i) for i, matcher in enumerate(matchers) if matcher is not None]
        if asked:
            self._masking.unsafe_compute_mask_ptr(asked, masks.ctypes.data, masks.strides[0], len(following))
        for matcher, i in asked:
            if matcher.is_error():  # its mask has the end tokens
                masks[i] = 0
        return {row: Following(mask, matcher is not None and matcher.is_stopped())
                for row, mask, matcher in zip(following, masks, matchers)}

    def drew(self, rows: Iterable[int], pending: Pending) -> None:
        """`pending` brings the tokens of `rows`, in that order."""
        for place, row in enumerate(rows):
            if row in self._rows:
                self._rows[row].drawn = pending, place

    def _up_to_date(self, row: _Row) -> LLMatcher | None:
        """None where there is none, or no more: what is wrong with one grammar is its sample's affair alone."""
        token_id = None
        if row.drawn is not None:
            pending, place = row.drawn
            row.drawn = None
            token_id = pending.tokens()[place]
        if not row.failed and token_id != NOTHING_LEFT:
            try:
                matcher = row.matcher.result()
                if token_id is not None:
                    matcher.consume_token(token_id)
                return matcher
            except Exception as error:
                log.warning("grammar cannot be followed", error=type(error).__name__)  # whose text may quote it
        row.failed = True
        return None

    def _matcher(self, grammar: str, output: list[int]) -> LLMatcher:
        matcher = LLMatcher(self._vocabulary(), grammar, limits=LIMITS, log_level=0)
        matcher.consume_tokens(output)
        return matcher
