"""What a rank does when masks cannot be made."""

from __future__ import annotations

import pytest
from llguidance import LLMatcher, LLTokenizer

from quire.engine.execution.grammar_rows import GrammarRows
from quire.engine.messages import Sampling
from quire.engine.plan import NewRow


def test_masks_that_find_no_memory_are_an_error_and_hold_up_nobody() -> None:
    """Here there is never memory to pin: there is no GPU."""
    rows = GrammarRows(lambda: LLTokenizer("byte"), 257, pins=True)
    rows.enter([NewRow(0, [1], 1, Sampling(grammar=LLMatcher.grammar_from_regex("ab")), 0)])
    masks = rows.start_masks([0])
    with pytest.raises(RuntimeError, match=r"(?i)pin|accelerator|cuda"):
        masks.result(timeout=60)
