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

import structlog
import torch
from llguidance import LLExecutor, LLMatcher, LLTokenizer

from quire.engine.execution.pending import Pending
from quire.engine.grammar.deep_stack import in_deep_stack
from quire.engine.grammar.limits import LIMITS
from quire.engine.plan import NOTHING_LEFT, NewRow
from quire.engine.sampling.grammar import Masks

_MOST_THREADS = 16
_OTHER_THREADS = 2  # that are busy meanwhile: the one that launches steps, and one of the device's driver

log = structlog.get_logger("engine")


@dataclass(slots=True)
class _Row:
    matcher: Future[LLMatcher]  # made while the prompt is computed
    drawn: tuple[Pending, int] | None = None  # a step, and whose place in it: its token is not the matcher's yet
    failed: bool = False


class GrammarRows:
    def __init__(self, vocabulary: Callable[[], LLTokenizer], vocab_size: int, *, pins: bool) -> None:
        """pins: masks are to be sent to a GPU. `vocabulary` is called once, in another thread, when the first such row
        comes or `prepare` is called."""
        self._pins = pins
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

    def start_masks(self, rows: Iterable[int]) -> Future[Masks]:
        """Of those of `rows` that follow a grammar, in that order. One that cannot be followed, or not within its
        limits, may draw nothing, which ends its sample.

        Waits for the rows' last tokens, and until another thread is at work on the masks.
        """
        following = [row for row in rows if row in self._rows]
        at_work = threading.Event()
        found = self._masking.submit(self._masks, following, [self._matcher_of(self._rows[row]) for row in following],
                                     at_work)
        at_work.wait()  # else it might wait for this one to let go of the interpreter
        return found

    def drew(self, rows: Iterable[int], pending: Pending) -> None:
        """`pending` brings the tokens of `rows`, in that order."""
        for place, row in enumerate(rows):
            if row in self._rows:
                self._rows[row].drawn = pending, place

    def _matcher_of(self, row: _Row) -> tuple[LLMatcher | None, int | None]:
        """With the token that it has not seen, if any. No matcher: there is none, or no more; what is wrong with one
        grammar is its sample's affair alone."""
        token_id = None
        if row.drawn is not None:
            pending, place = row.drawn
            row.drawn = None
            token_id = pending.tokens()[place]
        if not row.failed and token_id != NOTHING_LEFT:
            try:
                return row.matcher.result(), token_id
            except Exception as error:
                log.warning("grammar cannot be followed", error=type(error).__name__)  # whose text may quote it
        row.failed = True
        return None, None

    def _masks(self, rows: list[int], matchers: list[tuple[LLMatcher | None, int | None]],
               at_work: threading.Event) -> Masks:
        try:
            bits = torch.zeros((len(rows), self._num_words), dtype=torch.int32, pin_memory=self._pins)
            unseen = [(matcher, token) for matcher, token in matchers if matcher is not None and token is not None]
            asked = [(matcher, i) for i, (matcher, _) in enumerate(matchers) if matcher is not None]
        finally:
            at_work.set()  # whoever waits for it would hang, where there is no memory to pin
        if unseen:
            self._executor.consume_token_par(unseen)
        if asked:
            self._executor.unsafe_compute_mask_ptr(asked, bits.data_ptr(), self._num_words * 4, len(rows))
        for matcher, i in asked:
            if matcher.is_error():  # its mask has the end tokens
                bits[i] = 0
        return Masks(bits, [matcher is not None and matcher.is_stopped() for matcher, _ in matchers])

    def _matcher(self, grammar: str, output: list[int]) -> LLMatcher:
        vocabulary = self._vocabulary()

        def make() -> LLMatcher:
            matcher = LLMatcher(vocabulary, grammar, limits=LIMITS, log_level=0)
            matcher.consume_tokens(output)
            return matcher

        return in_deep_stack(make)
