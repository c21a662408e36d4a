"""Calls with room for deep recursion. llguidance makes grammars by recursion, a level for each rule, terminal or `$ref`
in a chain, and where a thread's usual 8 MiB end, the process does: three thousand rules are enough.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

# The deepest grammar that MAX_CHARACTERS of text can hold takes less than 64 MiB. Memory is taken as it is used.
_STACK_BYTES = 256 * 2**20
_starting = threading.Lock()  # the size is one for all threads that start meanwhile


def in_deep_stack(call: Callable[[], T]) -> T:
    """What `call` returns or raises, from a thread of its own (150 us)."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="deep stack", daemon=True)
    with _starting:
        usual = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join()
    return done.result()
