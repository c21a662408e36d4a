"""How much work a grammar may be: the same for the front end that refuses and for the ranks that follow.

What goes beyond a limit while a text is written ends that sample alone, with an error.
"""

from __future__ import annotations

from llguidance import LLParserLimits

LIMITS = LLParserLimits(
    max_grammar_size=200_000,  # symbols
    max_lexer_states=100_000,
    initial_lexer_fuel=500_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    verbose_errors=False,
)
