"""One of the launcher's places for an engine: starts a process there, and says whether and when the next is to follow.

Engines live and die by themselves; what that means to the server is the launcher's matter, which calls this from its
one loop.
"""

from __future__ import annotations

import signal
import time

import msgspec
import structlog

from quire.app.engine_child import EngineChild
from quire.app.restart_policy import RestartPolicy
from quire.app.settings import ServeSettings
from quire.engine.oom_kills import OomKills

log = structlog.get_logger("quire")


class EngineSlot:
    def __init__(self, settings: ServeSettings, address: str, reload_file: str, own_environment: dict[str, str],
                 place: int) -> None:
        """`own_environment` is what its engines have beside what all children have."""
        self._settings = settings
        self._arguments = ["--address", address, "--args", msgspec.json.encode(settings.engine).decode(),
                           "--log-level", settings.log_level, "--reload-file", reload_file]
        self._own_environment = own_environment
        self._policy = RestartPolicy(settings.max_engine_restarts)
        self.place = place
        self._oom_kills = OomKills()
        self.last_cause = ""  # of the last engine's end, for log lines
        self.last_was_killed = False  # from outside: see quire.engine.messages.Ready
        self.gone = False  # for good: no engine is started here any more
        self.facts = {"engine": place} if settings.engine.data_parallel_size > 1 else {}  # for log lines
        self.child: EngineChild | None = None

    @property
    def serves(self) -> bool:
        return self.child is not None and self.child.serving_since is not None

    def start(self, environment: dict[str, str], lifeline: int) -> None:
        """Raises OSError where the system gives no process; the slot stays empty."""
        self._oom_kills = OomKills()
        self.child = EngineChild([*self._arguments, *(["--after-kill"] if self.last_was_killed else [])],
                                 environment | self._own_environment, lifeline, self._settings.engine_stall_timeout,
                                 self.facts)

    def take_ended(self) -> tuple[EngineChild, int] | None:
        """The engine that was here and its exit code, once it is over; the slot is empty then."""
        child = self.child
        if child is None or (code := child.ended()) is None:
            return None
        self.child = None
        child.close()
        self.last_was_killed = code == -signal.SIGKILL and not child.hung
        self.last_cause = "watchdog" if child.hung else self._oom_kills.cause(code)
        return child, code

    def restart_delay_s(self, ended: EngineChild, code: int) -> float | None:
        """How long to wait before the next start; None: it failed too often. To be asked once for each that ended."""
        now = time.monotonic()
        delay_s = self._policy.failed(now, 0.0 if ended.serving_since is None else now - ended.serving_since)
        if delay_s is not None:
            log.warning("engine ended", status=code, cause=self.last_cause, restart_in_s=delay_s,
                        **self.facts)
        return delay_s

    def failed_start_delay_s(self) -> float | None:
        """As `restart_delay_s`, after a `start` that raised OSError."""
        return self._policy.failed(time.monotonic())

    @property
    def policy_facts(self) -> dict[str, object]:
        """What a policy that gave up was."""
        return {"max_engine_restarts": self._policy.max_restarts, "window_s": self._policy.window_s, **self.facts}
