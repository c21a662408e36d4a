"""Standard error of our processes, which never holds them up: a pipe that nobody empties, a terminal that was stopped.

Lines go into a bounded queue, and a thread writes them. What finds the queue full is dropped and counted, and a line
says how many once there is room again. The descriptor itself stays as it is: other processes share it.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import io
import json
import os
import select
import stat
import sys
import threading
import time
from collections import deque

MAX_PENDING_BYTES = 1 << 20
PATIENCE_S = 1.0  # at the end, a reader that takes nothing for so long is not waited for


class Stderr(io.TextIOBase):
    """Takes text from any thread; a line that comes in pieces is put together first, so that it is written whole."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._start_anew()

    def _start_anew(self) -> None:
        """Also in a forked child: threads stay behind, and what was pending is the parent's to write."""
        self._mutex = threading.RLock()
        self._waiting: deque[bytes] = deque()
        self._awake = threading.Event()
        self._pending_bytes = 0  # waiting, or in the writer's hand
        self._writer: threading.Thread | None = None
        self._piece = ""  # of a line that has no end yet
        self._unsaid = 0  # lines dropped since the last word of that
        self.num_dropped = 0

    def write(self, text: str) -> int:
        with self._mutex:
            lines, end, self._piece = (self._piece + text).rpartition("\n")
            if end:
                self._put((lines + end).encode(self.encoding, self.errors))
        return len(text)

    def flush(self) -> None:
        """What has no line's end yet goes out too, as a progress bar wants it. Waits for nothing."""
        with self._mutex:
            piece, self._piece = self._piece, ""
            if piece:
                self._put(piece.encode(self.encoding, self.errors))

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def wait(self) -> None:
        """Until all is written, or nobody has read for a while. For the last moment of a process."""
        self.flush()
        left, since = self._pending_bytes, time.monotonic()
        while left and time.monotonic() - since < PATIENCE_S:
            time.sleep(0.001)
            if self._pending_bytes != left:
                left, since = self._pending_bytes, time.monotonic()

    def _put(self, lines: bytes) -> None:
        if self._never_blocks():
            self._say_dropped()
            if not self._write(lines):
                self._drop(lines)
        elif self._pending_bytes + len(lines) > MAX_PENDING_BYTES:
            self._drop(lines)
        else:
            self._pending_bytes += len(lines)
            self._waiting.append(lines)
            self._wake_writer()

    def _never_blocks(self) -> bool:
        """A file, or nothing at all. It is written to at once, so that not even SIGKILL loses a line."""
        try:
            return stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        except OSError:  # it is closed
            return True

    def _drop(self, lines: bytes) -> None:
        with self._mutex:
            num_lines = lines.count(b"\n") or 1
            self.num_dropped += num_lines
            self._unsaid += num_lines

    def _say_dropped(self) -> None:
        unsaid = self._unsaid
        if unsaid and self._pending_bytes <= MAX_PENDING_BYTES // 2 and self._write(self._dropped_line(unsaid)):
            with self._mutex:
                self._unsaid -= unsaid

    def _dropped_line(self, count: int) -> bytes:
        facts = {"event": "log lines dropped", "level": "warning", "dropped": count, "pid": os.getpid(),
                 "reason": "standard error took no more"}
        text = f"{facts['event']}: {count}, {facts['reason']}" if self.isatty() else json.dumps(facts)
        return text.encode() + b"\n"

    # The writer

    def _wake_writer(self) -> None:
        if self._writer is None:
            writer = threading.Thread(target=self._write_waiting, name="stderr", daemon=True)
            try:
                writer.start()
            except RuntimeError:  # no thread is to be had, as at the interpreter's end
                self._write_what_fits()
                return
            self._writer = writer
        self._awake.set()

    def _write_waiting(self) -> None:
        while True:
            self._awake.wait()
            self._awake.clear()
            while self._waiting:
                self._write_next()
                self._say_dropped()

    def _write_what_fits(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        while self._waiting and poll.poll(0):
            self._write_next()

    def _write_next(self) -> None:
        lines = self._waiting.popleft()
        if not self._write(lines):
            self._drop(lines)
        with self._mutex:
            self._pending_bytes -= len(lines)

    def _write(self, lines: bytes) -> bool:
        """Whether all of it went out. One that is closed, or whose reader is gone, is no reason to stop serving."""
        try:
            while lines:
                lines = lines[os.write(self._descriptor, lines):]
        except OSError:
            return False
        return True


stderr = Stderr()
os.register_at_fork(after_in_child=stderr._start_anew)
atexit.register(stderr.wait)


def take_over() -> None:
    """For a process of ours: what libraries, warnings and uncaught errors write must not hold it up either."""
    sys.stderr = stderr


def dump_stacks_on_faults() -> None:
    """Every thread's stack into the log where the process dies of a signal. Such a handler can use no queue."""
    faulthandler.enable(_own_end(stderr.fileno()))


def _own_end(descriptor: int) -> int:
    """Another end of the same pipe or terminal that may be told not to block, which this process alone sees.

    A file needs none; a socket (the journal's) has none, and a system may refuse one: then the same descriptor.
    """
    with contextlib.suppress(OSError):
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return descriptor


def replace_broken() -> None:
    """For the children to come, whose libraries would fail at a terminal or a pipe that is closed at its other end."""
    poll = select.poll()
    poll.register(2, 0)
    if poll.poll(0):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
