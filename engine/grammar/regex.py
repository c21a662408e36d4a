"""What a regular expression of a caller's means, where llguidance reads it otherwise than most callers do."""

from __future__ import annotations

import re

_DIGITS = {r"\d": "[0-9]", r"\D": "[^0-9]"}
_ESCAPE = re.compile(r"\\.", re.DOTALL)


def with_plain_digits(pattern: str) -> str:
    """The same, in which `\\d` is 0 to 9, as in the patterns of a JSON schema and with vLLM. llguidance's has
    the digits of all scripts, and a model with the choice does draw them. A class may stand within a class there."""
    return _ESCAPE.sub(lambda found: _DIGITS.get(found[0], found[0]), pattern)
