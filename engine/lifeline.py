"""No child outlives its parent: the kernel's parent-death signal, and a pipe whose end of file says the same.

The pipe covers what the signal does not: a parent that died before the signal was set, and grandchildren.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading

PR_SET_PDEATHSIG = 1


def die_with_parent(pipe: int | None = None, *, signalled: bool = True) -> None:
    """Ask for SIGKILL when the thread ends that started us; watch `pipe`'s read end, where one is given.

    `signalled` False is for children of a thread that may end before its process does: the pipe alone.
    """
    if signalled:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if pipe is not None:
        threading.Thread(target=_watch, args=(pipe,), name="lifeline", daemon=True).start()


def _watch(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os._exit(1)
