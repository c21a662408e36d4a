"""A launched step that is still to draw for rows that follow a grammar: their masks depend on the tokens of the step
before, which has not ended.

Masks are begun as soon as those tokens are known, and the draw is launched when it is needed: by the next launch, or
by whoever waits for the result. In between the host commits and plans.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import torch

from quire.engine.execution.grammar_rows import GrammarRows
from quire.engine.execution.pending import Pending
from quire.engine.execution.request_table import RequestTable
from quire.engine.execution.special_rows import SpecialRows
from quire.engine.execution.told_prompts import ToldPrompts
from quire.engine.sampling.grammar import Masks


@dataclass(slots=True)
class OpenStep:
    grammars: GrammarRows
    table: RequestTable
    rows: list[int]  # that it samples
    special: SpecialRows  # edited, but for masks
    logits: torch.Tensor  # of these rows, [samples, vocab]
    token_ids: torch.Tensor  # drawn by the rest
    told: ToldPrompts | None
    pooled: torch.Tensor | None
    before: Pending | None  # the step launched before it
    _masks: Future[Masks] | None = None

    def launched(self) -> Pending:
        pending = Pending.open(self._finish)
        if self.before is None:
            self._begin(pending)
        else:
            self.before.once_known(partial(self._begin, pending))
        return pending

    def _begin(self, pending: Pending) -> None:
        self._masks = self.grammars.start_masks(self.rows)
        self.grammars.drew(self.rows, pending)

    @torch.inference_mode()
    def _finish(self) -> Pending:
        if self.before is not None:
            self.before.tokens()  # so that it has begun
        assert self._masks is not None
        special = self.special
        special.mask(self._masks.result())
        token_ids = special.draw(self.token_ids, self.table)
        return Pending.of(token_ids, special.logprobs(self.logits, token_ids), special.wanted, self.told,
                          self.pooled)
