"""One thread for work that takes longer than the event loop may be held.

Python code runs in one thread at a time, and lets another one in every few milliseconds: a second such thread would
make nothing faster, and the loop wait twice as long for its turn. One call into a library holds up the loop for as long
as it takes, also from here, so the work is to be made of short calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_THREAD = ThreadPoolExecutor(1, thread_name_prefix="background")


async def in_background(job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `job` returns, when its turn comes; one whose caller left meanwhile is not begun."""
    return await asyncio.get_running_loop().run_in_executor(_THREAD, lambda: job(*args, **kwargs))
