"""Prompts that yield a vector and no token: of which of their tokens a step sums up the hidden states.

The sum of a prompt in parts is the sum of its parts' sums. No token is in two of them: of what a preempted request
computes again, only what no step has summed yet is summed. Called by `draft`; `engine/pooled_sums.py` adds them up.
"""

from __future__ import annotations

from quire.engine.scheduling.request import Request


def num_wanted(request: Request, end: int) -> int:
    """Of the tokens before `end`, which a step computes for the request, how many of the last are to be summed."""
    if request.sampling.pooling == "last":
        return int(end == request.num_prompt_tokens)
    count = max(0, end - request.num_pooled)
    request.num_pooled += count
    return count
