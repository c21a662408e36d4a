"""The rows of the request table whose text follows a grammar, and what each may draw next.

A matcher has seen every token of its output but those that are still on the device. The step that draws the next one is
launched before the one before it has ended. Once that has, masks are worked out while the device computes, and while
the host goes on (`open_step`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer

from quire.engine.execution.pending import Pending
from quire.engine.grammar.limits import LIMITS
from quire.engine.plan import NewRow
from quire.engine.sampling.processor import Following

_MOST_THREADS = 16
_OTHER_THREADS = 2  # that are busy meanwhile: the one that launches steps, and one of the device's driver


@dataclass(slots=True)
class _Row:
    matcher: Future[LLMatcher]  # made while the prompt is computed
    drawn: tuple[Pending, int] | None = None  # a step, and whose place in it: its token is not the matcher's yet


class GrammarRows:
    def __init__(self, vocabulary: Callable[[], LLTokenizer], vocab_size: int) -> None:
        """`vocabulary` is called once, in another thread, when the first such row comes or `prepare` is called."""
        self._num_words = -(-vocab_size // 32)
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._vocabulary = cache(vocabulary)  # asked for by that one thread only
        self._masking = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._executor = LLExecutor(max(1, min(_MOST_THREADS, (os.cpu_count() or 1) - _OTHER_THREADS)))
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

    def start_masks(self, rows: Iterable[int]) -> Future[dict[int, Following]]:
        """What those of `rows` that follow a grammar may draw next. One that ran into a limit may draw nothing.

        Waits for the rows' last tokens, and until another thread is at work on the masks.
        """
        following = [row for row in rows if row in self._rows]
        matchers = [self._up_to_date(self._rows[row]) for row in following]
        at_work = threading.Event()
        found = self._masking.submit(self._masks, following, matchers, at_work)
        at_work.wait()  # else it might wait for this one to let go of the interpreter
        return found

    def drew(self, rows: Iterable[int], pending: Pending) -> None:
        """`pending` brings the tokens of `rows`, in that order."""
        for place, row in enumerate(rows):
            if row in self._rows:
                self._rows[row].drawn = pending, place

    def _up_to_date(self, row: _Row) -> LLMatcher:
        matcher = row.matcher.result()
        if row.drawn is not None:
            pending, place = row.drawn
            row.drawn = None
            matcher.consume_token(pending.tokens()[place])
        return matcher

    def _masks(self, rows: list[int], matchers: list[LLMatcher], at_work: threading.Event) -> dict[int, Following]:
        masks = np.empty((len(rows), self._num_words), np.int32)
        wanted = [(matcher, i) for i, matcher in enumerate(matchers)]
        at_work.set()
        self._executor.unsafe_compute_mask_ptr(wanted, masks.ctypes.data, masks.strides[0], len(rows))
        for mask, matcher in zip(masks, matchers):
            if matcher.is_error():  # its mask has the end tokens
                mask[:] = 0
        return {row: Following(mask, matcher.is_stopped()) for row, mask, matcher in zip(rows, masks, matchers)}

    def _matcher(self, grammar: str, output: list[int]) -> LLMatcher:
        matcher = LLMatcher(self._vocabulary(), grammar, limits=LIMITS, log_level=0)
        matcher.consume_tokens(output)
        return matcher
