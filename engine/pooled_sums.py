"""The vectors of pooled prompts, out of the sums of hidden states that steps return: float32 numbers, a part at a time.

Called by `core` as steps are committed; which tokens are in a sum is `engine/scheduling/pooling.py`'s to say.
"""

from __future__ import annotations

import numpy as np

from quire.engine.scheduling.request import Request


def add(request: Request, summed: bytes) -> None:
    part = np.frombuffer(summed, np.float32).astype(np.float64)
    request.pooled = part if request.pooled is None else request.pooled + part


def vector(request: Request) -> bytes:
    """What the request asked for, once all its parts are added."""
    assert request.pooled is not None
    count = 1 if request.sampling.pooling == "last" else request.num_prompt_tokens
    return (request.pooled / count).astype(np.float32).tobytes()
