"""`quire serve`: the one parent of the engine and of gunicorn. It owns the port, the run directory and the exit code.

Starts both at once, restarts an engine that dies after it was ready, drains on SIGTERM, and lets nothing outlive
itself: each child asks the kernel to die with its parent, and watches a pipe that only this process holds open.

Exit codes: 0 stopped on request, 2 the settings cannot be used, 3 the model could not be loaded, 70 the engine or the
HTTP service broke for good.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from app.announce import Announcer
from app.listen import listen, url_of
from app.probe import Readiness, probe
from app.run_dir import RunDirectory
from app.sd_notify import sd_notify
from app.settings import ServeSettings, WorkerSettings, for_workers

log = structlog.get_logger("quire")

EXIT_OK, EXIT_CONFIG, EXIT_LOAD, EXIT_BROKEN = 0, 2, 3, 70
TICK_S = 0.1
PROBE_S = 0.2
STOP_ENGINE_S = 5.0
STOP_ENGINE_NOW_S = 0.5
STOP_HTTP_MARGIN_S = 10.0
# Of the launcher's own environment, what children must not see: keys, and systemd's and gunicorn's hand-overs.
_NOT_FOR_CHILDREN = ("VLLM_API_KEY", "QUIRE_API_KEY", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS",
                     "LISTEN_PID", "GUNICORN_CMD_ARGS", "GUNICORN_FD")


@dataclass
class RestartPolicy:
    """How long to wait before the engine is started again, or not at all."""

    max_failures: int = 5
    window_s: float = 300.0
    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    _failures: deque[float] = field(default_factory=deque)

    def failed(self, now: float) -> float | None:
        """The delay after a failure at `now`; None once max_failures fell within window_s."""
        self._failures.append(now)
        while now - self._failures[0] > self.window_s:
            self._failures.popleft()
        if len(self._failures) >= self.max_failures:
            return None
        return min(self.max_delay_s, self.first_delay_s * 2 ** (len(self._failures) - 1))


class Launcher:
    """Everything happens in `run`'s loop, in the main thread: children die with the *thread* that started them."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._announce = Announcer(settings)
        self._policy = RestartPolicy()
        self._engine: subprocess.Popen[bytes] | None = None
        self._http: subprocess.Popen[bytes] | None = None
        self._restart_engine_at: float | None = None
        self._exit_code: int | None = None  # set: stop everything, then leave with it
        self._was_ready = False
        self._ready = False
        self._next_probe = 0.0
        self._stop_signals = 0
        self._close_port_at: float | None = None
        self._kill_http_at: float | None = None

    def run(self) -> int:
        """Serve until told to stop; returns the exit code. Raises ConfigError where port or directory cannot be had."""
        with RunDirectory(self._settings.run_dir) as run_dir, contextlib.ExitStack() as stack:
            self._socket = stack.enter_context(listen(self._settings))
            self._url = url_of(self._socket)
            self._shared: WorkerSettings = for_workers(self._settings, run_dir.path, int(time.time()))
            self._shared.save()
            self._lifeline, lifeline_end = os.pipe()
            stack.callback(os.close, lifeline_end)
            self._wakeup = self._watch_signals()
            self._announce.starting()
            self._start_engine()
            self._start_http()
            try:
                while self._exit_code is None:
                    self._tick()
            finally:
                self._stop_all()
            return self._exit_code

    # Starting

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_CHILDREN}
        return inherited | {
            "QUIRE_RUN_DIR": self._shared.run_dir,
            "QUIRE_ROOT_PATH": self._settings.root_path,
            "QUIRE_LIFELINE": str(self._lifeline),
            "QUIRE_LISTEN_FD": str(self._socket.fileno()),
            "QUIRE_LAUNCHER_PID": str(os.getpid()),
            "PROMETHEUS_MULTIPROC_DIR": self._shared.metrics_dir,
        }

    def _start_engine(self) -> None:
        self._restart_engine_at = None
        self._engine = subprocess.Popen(
            [sys.executable, "-m", "engine", "--address", self._shared.engine_address,
             "--lifeline", str(self._lifeline), "--args", msgspec.json.encode(self._settings.engine).decode()],
            env=self._environment(), pass_fds=[self._lifeline], stdin=subprocess.DEVNULL, start_new_session=True)

    def _start_http(self) -> None:
        self._http = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--config", "python:app.gunicorn_conf"],
            env=self._environment(), pass_fds=[self._lifeline, self._socket.fileno()], stdin=subprocess.DEVNULL,
            start_new_session=True)

    # The loop

    def _tick(self) -> None:
        now = time.monotonic()
        self._take_signals()
        self._reap()
        if self._restart_engine_at is not None and now >= self._restart_engine_at:
            self._start_engine()
        if not self._ready and not self._stop_signals and now >= self._next_probe:
            self._look_whether_ready()
            self._next_probe = time.monotonic() + PROBE_S
        if self._close_port_at is not None and now >= self._close_port_at:
            self._close_port_at = None
            self._socket.close()
            self._signal_http(signal.SIGTERM)
        if self._kill_http_at is not None and now >= self._kill_http_at:
            self._exit_code = EXIT_OK

    def _look_whether_ready(self) -> None:
        readiness: Readiness = probe(self._socket)
        if not readiness.ready:
            self._announce.loading(readiness.phase, readiness.fraction)
            sd_notify(f"STATUS={readiness.phase} {readiness.fraction:.0%}")
            return
        self._announce.ready(self._url, again=self._was_ready)
        sd_notify("READY=1", "STATUS=ready")
        self._ready = self._was_ready = True

    def _reap(self) -> None:
        if self._engine is not None and self._engine.poll() is not None:
            code, self._engine = self._engine.returncode, None
            self._engine_ended(code)
        if self._http is not None and self._http.poll() is not None:
            code, self._http = self._http.returncode, None
            if self._stop_signals:
                self._exit_code = EXIT_OK
            else:
                log.error("HTTP service ended", exit_code=code)
                self._exit_code = EXIT_BROKEN if self._was_ready else EXIT_LOAD
        if os.getpid() == 1:
            self._reap_orphans()

    def _engine_ended(self, code: int) -> None:
        self._ready = False
        if code == EXIT_CONFIG or not self._was_ready:  # it would be the same again
            log.error("engine could not start", exit_code=code)
            self._exit_code = EXIT_CONFIG if code == EXIT_CONFIG else EXIT_LOAD
            return
        delay = self._policy.failed(time.monotonic())
        if delay is None:
            log.error("engine ended too often", exit_code=code, failures=self._policy.max_failures,
                      window_s=self._policy.window_s)
            self._exit_code = EXIT_BROKEN
            return
        log.warning("engine ended", exit_code=code, restart_in_s=delay)
        sd_notify("STATUS=engine restarts")
        self._restart_engine_at = time.monotonic() + delay

    def _reap_orphans(self) -> None:
        """As PID 1, children of children become ours when their parent dies; someone must take their exit codes."""
        ours = {child.pid for child in (self._engine, self._http) if child is not None}
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in ours:
                os.waitpid(ended.si_pid, 0)

    # Signals and the end

    def _watch_signals(self) -> int:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)  # the number arrives through the pipe
        return read_end

    def _take_signals(self) -> None:
        readable, _, _ = select.select([self._wakeup], [], [], TICK_S)
        for number in os.read(self._wakeup, 64) if readable else b"":
            if number != signal.SIGCHLD:
                self._asked_to_stop(signal.Signals(number).name)

    def _asked_to_stop(self, name: str) -> None:
        self._stop_signals += 1
        settings = self._settings
        if self._stop_signals > 1:
            log.warning("stopping now", signal=name)
            self._exit_code = EXIT_OK
            return
        log.info("draining", signal=name, drain_delay_s=settings.drain_delay,
                 shutdown_timeout_s=settings.shutdown_timeout)
        sd_notify("STOPPING=1", "STATUS=draining")
        now = time.monotonic()
        deadline = now + settings.drain_delay + settings.shutdown_timeout
        pending = Path(self._shared.drain_file + ".new")
        pending.write_text(str(deadline))
        pending.rename(self._shared.drain_file)  # whole or not at all: workers poll for it
        self._close_port_at = now + settings.drain_delay
        self._kill_http_at = deadline + STOP_HTTP_MARGIN_S

    def _signal_http(self, number: signal.Signals) -> None:
        if self._http is not None:
            self._http.send_signal(number)

    def _stop_all(self) -> None:
        """HTTP first, at once: whoever could finish has. Then the engine, politely for a moment."""
        if self._http is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._http.pid, signal.SIGKILL)  # its own session, so workers too
            self._http.wait()
        if self._engine is not None:
            self._engine.terminate()
            in_peace = self._ready and self._stop_signals < 2  # one that loads would not hear it
            try:
                self._engine.wait(STOP_ENGINE_S if in_peace else STOP_ENGINE_NOW_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._engine.pid, signal.SIGKILL)
                self._engine.wait()
        self._announce.stopped()
