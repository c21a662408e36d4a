"""An event loop for targets whose code is asynchronous."""

from __future__ import annotations

import asyncio
import atexit


def new() -> asyncio.AbstractEventLoop:
    """One that is closed when the process ends."""
    loop = asyncio.new_event_loop()

    def close() -> None:
        loop.run_until_complete(_end())
        loop.close()

    atexit.register(close)
    return loop


async def _end() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()
