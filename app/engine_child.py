"""An engine process as its parent sees it: whether it loads, serves or hangs, and how it is brought to an end.

Knows nothing of restarts and of HTTP; the launcher calls it from its one loop, and waits for its beats in it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping

import structlog

from quire.engine.heartbeat import LOADING, SERVING
from quire.engine.module_command import module_command

log = structlog.get_logger("quire")

DOUBT_S = 2.0  # after a pause of the whole machine the silence is ours: a living engine beats again within a second
TELL_S = 0.1  # from our word of it to SIGABRT: stack traces go to the same descriptor, in pieces
ABORT_S = 2.0  # from SIGABRT, for stack traces, to SIGKILL
POLL_S = 0.02
DEATH_S = 10.0  # a process that a driver holds back may outlive even SIGKILL: its parent waits for it no longer


class EngineChild:
    """Started on construction. A *serving* engine beats once a second; how long it may load is nobody's guess."""

    def __init__(self, arguments: list[str], environment: dict[str, str], lifeline: int,
                 stall_timeout_s: float, facts: Mapping[str, int]) -> None:
        """`facts` go into every log line. Raises OSError where the system gives no process."""
        self._log = log.bind(**facts)
        self._stall_timeout_s = stall_timeout_s
        self._pipe, beats = os.pipe()
        os.set_blocking(self._pipe, False)
        try:
            self._process = subprocess.Popen(
                [*module_command("quire.engine"), *arguments, "--lifeline", str(lifeline), "--beat-fd", str(beats)],
                env=environment, pass_fds=[lifeline, beats], stdin=subprocess.DEVNULL, start_new_session=True)
        except OSError:
            os.close(self._pipe)
            raise
        finally:
            os.close(beats)
        self.serving_since: float | None = None
        self.hung = False  # it was silent for too long, and is being ended
        self.immortal = False  # and SIGKILL did not end it either
        self._is_alone = False  # its process group has no other member
        self._last_beat = time.monotonic()
        self._doubted_at: float | None = None
        self._abort_at = 0.0  # once it hung
        self._kill_at = 0.0  # once it was told to abort
        self._killed_at = 0.0
        self._pipes = [self._pipe]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def pipes(self) -> list[int]:
        """What becomes readable with a beat."""
        return self._pipes

    def ended(self) -> int | None:
        """Its exit code (minus the signal's number), once it is over, and its ranks with it, whatever they hold."""
        code = self._process.poll()
        if code is not None and not self._is_alone:
            self._end_group()
        return code

    def _end_group(self) -> None:
        deadline = time.monotonic() + DEATH_S
        while time.monotonic() < deadline:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                self._is_alone = True
                return
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-self._process.pid, os.WNOHANG)  # as PID 1, its orphans are ours
            time.sleep(POLL_S)
        self._log.error("ranks of the engine cannot be killed", group=self._process.pid)
        self._is_alone = True

    def take_beats(self, now: float) -> bool:
        """Reads what came through the pipe; whether a load made progress."""
        try:
            beats = os.read(self._pipe, 65536)
        except BlockingIOError:
            return False
        if not beats:
            self._pipes = []  # its end of the pipe is closed: it is dying, and select must not spin meanwhile
            return False
        self._last_beat = now
        if self.serving_since is None and SERVING in beats:
            self.serving_since = now
        return LOADING in beats

    def silent_s(self, now: float) -> float:
        """How long a serving engine has given no sign of life; 0 for one that loads."""
        return 0.0 if self.serving_since is None else now - self._last_beat

    def end_if_hung(self, now: float) -> float | None:
        """Ends a serving engine that was silent for too long. Returns when to call again; None: not before it serves.

        The beats that came must have been taken.
        """
        if self.serving_since is None:
            return None
        if self.hung:
            return self._kill(now) if self._kill_at else self._abort(now)
        if self.silent_s(now) < self._stall_timeout_s:
            self._doubted_at = None
            return self._last_beat + self._stall_timeout_s
        if self._doubted_at is None:
            self._doubted_at = now
        if now < self._doubted_at + DOUBT_S:
            return self._doubted_at + DOUBT_S
        self._log.error("engine hangs", silent_s=round(self.silent_s(now), 1), stall_timeout_s=self._stall_timeout_s)
        self.hung = True
        self._abort_at = now + TELL_S
        return self._abort_at

    def _abort(self, now: float) -> float:
        if now < self._abort_at:
            return self._abort_at
        self._process.send_signal(signal.SIGABRT)
        self._kill_at = now + ABORT_S
        return self._kill_at

    def _kill(self, now: float) -> float:
        if now < self._kill_at:
            return self._kill_at
        self._signal_group(signal.SIGKILL)
        self._killed_at = self._killed_at or now  # which may be long after it was due
        self.immortal = now >= self._killed_at + DEATH_S
        return self._killed_at + DEATH_S

    def close(self) -> None:
        """After its end."""
        os.close(self._pipe)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)  # its own session, so its children too


def stop_all(children: Iterable[EngineChild], timeout_s: float) -> None:
    """SIGTERM to each, then SIGKILL to all of its group. Many take no longer than one."""
    left = list(children)
    for child in left:
        child._process.terminate()
    left = _alive_after(left, timeout_s)
    for child in left:
        child._signal_group(signal.SIGKILL)
    for child in _alive_after(left, DEATH_S):
        child._log.error("engine cannot be killed", pid=child.pid)


def _alive_after(children: list[EngineChild], timeout_s: float) -> list[EngineChild]:
    deadline = time.monotonic() + timeout_s
    alive = []
    for child in children:
        try:
            child._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            alive.append(child)
    return alive
