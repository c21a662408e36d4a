"""The engine process as its parent sees it: whether it loads, serves or hangs, and how it is brought to an end.

Knows nothing of restarts and of HTTP; the launcher calls it from its one loop, and waits for its beats in it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import structlog

from engine.heartbeat import LOADING, SERVING

log = structlog.get_logger("quire")

DOUBT_S = 2.0  # after a pause of the whole machine the silence is ours: a living engine beats again within a second
ABORT_S = 2.0  # from SIGABRT, for stack traces, to SIGKILL
DEATH_S = 10.0  # a process that a driver holds back may outlive even SIGKILL: its parent waits for it no longer


class EngineChild:
    """Started on construction. A *serving* engine beats once a second; how long it may load is nobody's guess."""

    def __init__(self, arguments: list[str], environment: dict[str, str], lifeline: int,
                 stall_timeout_s: float) -> None:
        self._stall_timeout_s = stall_timeout_s
        self._pipe, beats = os.pipe()
        os.set_blocking(self._pipe, False)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "engine", *arguments, "--lifeline", str(lifeline), "--beat-fd", str(beats)],
                env=environment, pass_fds=[lifeline, beats], stdin=subprocess.DEVNULL, start_new_session=True)
        finally:
            os.close(beats)
        self.serving_since: float | None = None
        self.hung = False  # it was silent for too long, and is being ended
        self.immortal = False  # and SIGKILL did not end it either
        self._last_beat = time.monotonic()
        self._doubted_at: float | None = None
        self._kill_at = 0.0  # once it hung
        self._pipes = [self._pipe]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def pipes(self) -> list[int]:
        """What becomes readable with a beat."""
        return self._pipes

    def ended(self) -> int | None:
        """Its exit code (minus the signal's number), once it is over."""
        return self._process.poll()

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
            return self._kill(now)
        if self.silent_s(now) < self._stall_timeout_s:
            self._doubted_at = None
            return self._last_beat + self._stall_timeout_s
        if self._doubted_at is None:
            self._doubted_at = now
        if now < self._doubted_at + DOUBT_S:
            return self._doubted_at + DOUBT_S
        log.error("engine hangs", silent_s=round(self.silent_s(now), 1), stall_timeout_s=self._stall_timeout_s)
        self.hung = True
        self._kill_at = now + ABORT_S
        self._process.send_signal(signal.SIGABRT)
        return self._kill_at

    def _kill(self, now: float) -> float:
        if now < self._kill_at:
            return self._kill_at
        self._signal_group(signal.SIGKILL)
        self.immortal = now >= self._kill_at + DEATH_S
        return now + DEATH_S

    def stop(self, timeout_s: float) -> None:
        """SIGTERM, then SIGKILL to all of its group."""
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._signal_group(signal.SIGKILL)
            try:
                self._process.wait(DEATH_S)
            except subprocess.TimeoutExpired:
                log.error("engine cannot be killed", pid=self.pid)

    def close(self) -> None:
        """After its end."""
        os.close(self._pipe)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)  # its own session, so its children too
