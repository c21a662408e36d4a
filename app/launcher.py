"""`quire serve`: the one parent of the engines and of gunicorn. It owns the port, the run directory and the exit code.

Starts all at once, restarts an engine that died or hangs after it was ready, serves on without one that failed too
often as long as another is left, drains on SIGTERM, has everything read again on SIGHUP, speaks to systemd, and lets
nothing outlive itself: each child asks the kernel to die with its parent, and watches a pipe that only this process
holds open.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from quire.app import gone_file, whole_file
from quire.app.announce import Announcer
from quire.app.engine_child import EngineChild, stop_all
from quire.app.engine_slot import EngineSlot
from quire.app.listen import listen, listen_admin, url_of
from quire.app.model_child import ModelChild
from quire.app.open_files import raise_limit
from quire.app.probe import Readiness, probe
from quire.app.reload import request_reload
from quire.app.run_dir import run_directory
from quire.app.sd_notify import Systemd
from quire.app.settings import ServeSettings, flag
from quire.app.telemetry.audit import AuditError, AuditLog
from quire.app.worker_settings import WorkerSettings, for_workers
from quire.engine.errors import ConfigError
from quire.engine.exit_codes import EXIT_BROKEN, EXIT_CONFIG, EXIT_LOAD
from quire.engine.frontend.shares import environments
from quire.engine.heartbeat import OVERDUE_S
from quire.engine.logs import LevelFile
from quire.engine.module_command import module_command
from quire.engine.stderr import replace_broken
from quire.engine.weights.locate import is_hub_model

log = structlog.get_logger("quire")

EXIT_OK, EXIT_HUNG = 0, 71
PROBE_S = 0.2
TELL_FETCH_S = 0.5
STOP_ENGINE_S = 5.0
STOP_ENGINE_NOW_S = 0.5
STOP_HTTP_MARGIN_S = 10.0
FAREWELL_S = 3.0  # for streams to end with an error when the server gives up
GONE_AGAIN_S = 1.0  # to the next try, where workers cannot be told which engines are gone
# Of the launcher's own environment, what children must not see: keys, and systemd's and gunicorn's hand-overs.
_NOT_FOR_CHILDREN = ("VLLM_API_KEY", "QUIRE_API_KEY", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS",
                     "LISTEN_PID", "GUNICORN_CMD_ARGS", "GUNICORN_FD")


class Launcher:
    """Everything happens in `run`'s loop, in the main thread: children die with the *thread* that started them."""

    def __init__(self, settings: ServeSettings, reread: Callable[[], ServeSettings] | None = None) -> None:
        """`reread` gives the settings from the same sources as they are now, or raises ConfigError; for SIGHUP."""
        self._settings = settings
        self._reread = reread or (lambda: settings)
        self._announce = Announcer(settings)
        self._audit = AuditLog(settings.audit_log)
        self._systemd = Systemd()
        self._slots: list[EngineSlot] = []
        self._http: subprocess.Popen[bytes] | None = None
        self._model: ModelChild | None = None  # while it looks at the model's files, or fetches them
        self._fetches = is_hub_model(settings.engine)  # engines wait for it then
        self._error: ConfigError | None = None  # why the model cannot be served
        self._due: dict[Callable[[], None], float] = {}  # what is to be done, and when
        self._exit_code: int | None = None  # set: stop everything, then leave with it
        self._was_ready = False
        self._ready = False  # all engines that are left serve, and clients would hear it
        self._stop_signals = 0

    def run(self) -> int:
        """Serve until told to stop; returns the exit code.

        Raises:
            ConfigError: port, directory, GPUs or the model's files cannot be had.
        """
        raise_limit()
        own_environments = environments(self._settings.engine, os.environ)
        with contextlib.ExitStack() as stack:
            run_dir = stack.enter_context(run_directory(self._settings.run_dir,
                                                        shared=self._settings.allow_shared_run_dir))
            self._socket = stack.enter_context(listen(self._settings))
            self._url = url_of(self._socket, self._settings.scheme)
            self._admin_socket = listen_admin(self._settings)
            admin_port = None
            if self._admin_socket is not None:
                admin_port = stack.enter_context(self._admin_socket).getsockname()[1]
                log.info("admin port", url=url_of(self._admin_socket, self._settings.scheme))
            self._shared: WorkerSettings = for_workers(self._settings, run_dir, int(time.time()), admin_port)
            self._shared.save()
            self._levels = LevelFile(self._shared.reload_file)
            self._lifeline, lifeline_end = os.pipe()
            stack.callback(os.close, lifeline_end)
            self._wakeup = self._watch_signals()
            self._announce.starting(self._url)
            self._systemd.loading("starting")
            self._slots = [
                EngineSlot(self._settings, address, self._shared.reload_file, environment, place)
                for place, (address, environment) in enumerate(zip(self._shared.engine_addresses, own_environments))]
            try:
                self._model = ModelChild(self._settings, self._shared.fetch_file, self._inherited(), self._lifeline)
                if self._fetches:
                    self._in(0, self._tell_fetch)
                else:
                    self._start_engines()
                self._start_http()
                self._watchdog()
                while self._exit_code is None:
                    self._tick()
            finally:
                self._stop_all()
            if self._error is not None:
                raise self._error
            return self._exit_code

    # Starting

    def _inherited(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name not in _NOT_FOR_CHILDREN}

    def _environment(self) -> dict[str, str]:
        # Engines and workers read the files that one process fetched, and the same ones when they are started again.
        fetched = {"HF_HUB_OFFLINE": "1"} if self._fetches else {}
        admin = {} if self._admin_socket is None else {"QUIRE_ADMIN_FD": str(self._admin_socket.fileno())}
        return self._inherited() | fetched | admin | {
            "QUIRE_RUN_DIR": self._shared.run_dir,
            "QUIRE_LIFELINE": str(self._lifeline),
            "QUIRE_LISTEN_FD": str(self._socket.fileno()),
            "QUIRE_LAUNCHER_PID": str(os.getpid()),
            "PROMETHEUS_MULTIPROC_DIR": self._shared.metrics_dir,
            "PYTHONSAFEPATH": "1",  # for what children start
        }

    @property
    def _engines(self) -> list[EngineChild]:
        return [slot.child for slot in self._slots if slot.child is not None]

    @property
    def _left(self) -> list[EngineSlot]:
        return [slot for slot in self._slots if not slot.gone]

    def _start_engines(self) -> None:
        for slot in self._slots:
            self._start_engine(slot)

    def _start_engine(self, slot: EngineSlot) -> None:
        with contextlib.suppress(OSError), open(self._shared.engine_starts_file, "ab") as starts:
            starts.write(b"+")  # only for the metric of restarts, which is not worth an engine
        replace_broken()
        try:
            slot.start(self._environment(), self._lifeline)
        except OSError as error:  # short of memory, as after an engine that died of it
            log.error("engine cannot be started", reason=str(error), **slot.facts)
            if self._was_ready:
                self._start_again(slot, slot.failed_start_delay_s(), EXIT_BROKEN)
            else:
                self._lose(slot, EXIT_LOAD, "the engine could not start", **slot.facts)
            return
        self._in(0, self._look_whether_ready)

    def _start_http(self) -> None:
        descriptors = [s.fileno() for s in (self._socket, self._admin_socket) if s is not None]
        self._http = subprocess.Popen(
            [*module_command("quire.app.http_master"), "--config", "python:quire.app.gunicorn_conf"],
            env=self._environment(), pass_fds=[self._lifeline, *descriptors], stdin=subprocess.DEVNULL,
            start_new_session=True)

    # The loop

    def _in(self, delay_s: float, job: Callable[[], None]) -> None:
        """Do `job` then, instead of when it was to be done before."""
        self._due[job] = time.monotonic() + delay_s

    def _tick(self) -> None:
        wait_s = max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None
        pipes = [pipe for engine in self._engines for pipe in engine.pipes]
        readable, _, _ = select.select([self._wakeup, *pipes], [], [], wait_s)
        if self._wakeup in readable:
            self._take_signals()
        self._take_beats()  # before any judgement of silence
        self._reap()
        now = time.monotonic()
        for job in [job for job, at in self._due.items() if at <= now]:
            del self._due[job]
            job()

    def _take_beats(self) -> None:
        now = time.monotonic()
        for engine in self._engines:
            if engine.take_beats(now):
                self._systemd.loading()
        self._end_if_hung()
        self._levels.follow()  # an admin may have set another

    def _end_if_hung(self) -> None:
        now = time.monotonic()
        looks = []
        for slot in self._left:
            if slot.child is not None and (again_at := slot.child.end_if_hung(now)) is not None:
                looks.append(again_at)
                if slot.child.immortal:
                    self._lose(slot, EXIT_HUNG, "the engine hangs and cannot be killed", **slot.facts)
        if looks:
            self._in(min(looks) - now, self._end_if_hung)

    def _look_whether_ready(self) -> None:
        """Ready means that both say so: the engines serve, and clients would hear it."""
        left = self._left
        if self._ready or self._stop_signals or any(slot.child is None for slot in left):
            return
        readiness: Readiness = probe(self._shared.run_dir)
        if not readiness.ready:  # it is while another engine serves
            self._announce.loading(readiness.phase, readiness.fraction)
            self._systemd.status(f"{readiness.phase} {readiness.fraction:.0%}")
        if not readiness.ready or not all(slot.serves for slot in left):
            self._in(PROBE_S, self._look_whether_ready)
            return
        with contextlib.suppress(OSError):  # a full disk; a worker that comes later waits for all engines again
            Path(self._shared.opened_file).touch()
        self._announce.ready(self._url, again=self._was_ready)
        self._systemd.ready()
        if len(left) < len(self._slots):
            self._systemd.status(f"serving with {len(left)} of {len(self._slots)} engines")
        self._ready = self._was_ready = True

    def _tell_fetch(self) -> None:
        if self._model is not None:
            state = self._model.state
            self._systemd.loading(f"{state.phase} {state.fraction:.0%}")
            self._in(TELL_FETCH_S, self._tell_fetch)

    def _watchdog(self) -> None:
        interval_s = self._systemd.watchdog_s
        if interval_s is None:
            return
        now = time.monotonic()
        silent_s = max((slot.child.silent_s(now) for slot in self._left if slot.child is not None), default=0.0)
        if silent_s < self._settings.engine_stall_timeout + OVERDUE_S:
            self._systemd.alive()
        self._in(interval_s / 2, self._watchdog)

    # Children that end

    def _reap(self) -> None:
        if self._model is not None and self._model.ended():
            self._model_ended(self._model)
        for slot in self._slots:
            if (ended := slot.take_ended()) is not None and not slot.gone:
                self._engine_ended(slot, *ended)
        if self._http is not None and (code := self._http.poll()) is not None:
            self._http = None
            if self._stop_signals:
                self._exit_code = EXIT_OK
            elif code == EXIT_BROKEN:  # gunicorn's master told how many
                self._give_up(EXIT_BROKEN, "HTTP workers ended too often")
            else:
                self._give_up(*((EXIT_BROKEN, "the HTTP service ended") if self._was_ready else
                                (EXIT_LOAD, "the HTTP service could not start")), status=code)
        if os.getpid() == 1:
            self._reap_orphans()

    def _model_ended(self, model: ModelChild) -> None:
        self._model = None
        if model.error is not None:
            self._error, self._exit_code = model.error, EXIT_CONFIG
        elif self._fetches:
            self._start_engines()

    def _engine_ended(self, slot: EngineSlot, engine: EngineChild, code: int) -> None:
        self._ready = False
        if self._stop_signals and not self._was_ready:
            self._exit_code = EXIT_OK
            return
        if code == EXIT_CONFIG or not (self._was_ready or engine.serving_since):  # it would be the same again
            self._lose(slot, EXIT_CONFIG if code == EXIT_CONFIG else EXIT_LOAD, "the engine could not start",
                       status=code, cause=slot.last_cause, **slot.facts)
            return
        self._start_again(slot, slot.restart_delay_s(engine, code), EXIT_HUNG if engine.hung else EXIT_BROKEN,
                          status=code, cause=slot.last_cause)

    def _start_again(self, slot: EngineSlot, delay_s: float | None, exit_code: int, **facts: object) -> None:
        """After `delay_s`; None: it failed too often, which is worth `exit_code` if it was the last."""
        if delay_s is None:
            self._lose(slot, exit_code, "the engine ended too often", **facts, **slot.policy_facts)
            return
        self._systemd.status("engine restarts")
        self._in(delay_s, partial(self._start_engine, slot))

    def _lose(self, slot: EngineSlot, exit_code: int, reason: str, **facts: object) -> None:
        """There will be no engine in this place. The others serve on; without one, or before all were ready once, the
        server ends with `exit_code`."""
        slot.gone = True
        if not self._was_ready or not self._left:
            self._give_up(exit_code, reason, **facts)
            return
        log.error("engine given up, the others serve on", reason=reason, engines_left=len(self._left), **facts)
        self._tell_workers_who_is_gone()
        self._in(0, self._look_whether_ready)

    def _tell_workers_who_is_gone(self) -> None:
        gone = {slot.place: slot.last_was_killed for slot in self._slots if slot.gone}
        try:
            gone_file.write(self._shared.gone_file, gone)
        except OSError as error:  # a full disk; until they know, what the engine had accepted waits for it
            log.error("workers cannot be told which engines are gone", reason=str(error))
            self._in(GONE_AGAIN_S, self._tell_workers_who_is_gone)

    def _give_up(self, exit_code: int, reason: str, **facts: object) -> None:
        """The last error event of this server."""
        if self._exit_code is None:
            log.error("giving up", reason=reason, exit_code=exit_code, **facts)
            self._exit_code = exit_code

    def _reap_orphans(self) -> None:
        """As PID 1, children of children become ours when their parent dies; someone must take their exit codes."""
        ours = {child.pid for child in (*self._engines, self._http, self._model) if child is not None}
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
        for number in os.read(self._wakeup, 64):
            if number == signal.SIGHUP and not self._announce.terminal_is_gone():
                self._reload()
            elif number != signal.SIGCHLD:
                self._asked_to_stop(signal.Signals(number).name)

    def _reload(self) -> None:
        """Keys, certificates and log level; what else changed in the sources waits for a restart."""
        self._systemd.reloading()
        try:
            wanted = self._reread()
            self._audit.write("reload", "begun", by="SIGHUP", log_level=wanted.log_level)
            request_reload(self._shared.reload_file, wanted.log_level)
        except (ConfigError, AuditError, OSError) as error:  # OSError: a full disk must not end a server that serves
            log.error("reload refused, everything stays", problems=str(error).splitlines())
        else:
            log.info("reloading", log_level=wanted.log_level, need_a_restart=_changed(self._settings, wanted))
        self._systemd.reloaded(self._was_ready)

    def _asked_to_stop(self, name: str) -> None:
        self._stop_signals += 1
        settings = self._settings
        if self._stop_signals > 1:
            log.warning("stopping now", signal=name)
            self._exit_code = EXIT_OK
            return
        if self._model is not None and self._fetches:  # nothing is served yet
            log.info("stopping", signal=name, reason="the model is not fetched yet")
            self._exit_code = EXIT_OK
            return
        self._find_out_who_serves()
        log.info("draining", signal=name, drain_delay_s=settings.drain_delay,
                 shutdown_timeout_s=settings.shutdown_timeout)
        drain_s = settings.drain_delay + settings.shutdown_timeout
        self._systemd.stopping(drain_s + STOP_HTTP_MARGIN_S + STOP_ENGINE_S)
        try:
            whole_file.replace(self._shared.drain_file, str(time.monotonic() + drain_s).encode())
        except OSError as error:  # the port is closed in time all the same
            log.error("load balancers cannot be told of the drain", reason=str(error))
        self._in(settings.drain_delay, self._close_port)
        self._in(drain_s + STOP_HTTP_MARGIN_S, self._end_drain)

    def _find_out_who_serves(self) -> None:
        """Clients may know that it is ready before the next look at that, and from now on there is none: an engine that
        dies in the drain must be replaced for them, as it would have been without it."""
        for engine in self._engines:
            engine.take_beats(time.monotonic())
        serves = [slot.serves for slot in self._left]
        self._was_ready = self._was_ready or any(serves)
        self._ready = all(serves)

    def _close_port(self) -> None:
        self._socket.close()
        if self._admin_socket is not None:
            self._admin_socket.close()
        if self._http is not None:
            self._http.send_signal(signal.SIGTERM)

    def _end_drain(self) -> None:
        self._exit_code = EXIT_OK

    def _stop_all(self) -> None:
        """HTTP first, at once: whoever could finish has. Then the engines, politely for a moment."""
        if self._model is not None:
            self._model.stop()
        if self._http is not None:
            if self._exit_code not in (None, EXIT_OK) and self._was_ready:
                self._end_streams(self._http)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._http.pid, signal.SIGKILL)  # its own session, so workers too
            self._http.wait()
        in_peace = self._ready and self._stop_signals < 2  # one that loads would not hear it
        stop_all(self._engines, STOP_ENGINE_S if in_peace else STOP_ENGINE_NOW_S)
        self._announce.stopped()

    def _end_streams(self, http: subprocess.Popen[bytes]) -> None:
        """No engine is left: each request ends with an error before its connection is cut."""
        for slot in self._slots:
            slot.gone = True
        self._tell_workers_who_is_gone()
        self._close_port()
        with contextlib.suppress(subprocess.TimeoutExpired):
            http.wait(FAREWELL_S)


def _changed(now: ServeSettings, wanted: ServeSettings) -> list[str]:
    """The flags whose new values a running server cannot take."""
    pairs: list[tuple[object, object]] = [(now, wanted), (now.engine, wanted.engine)]
    return [flag(field.name) for old, new in pairs for field in dataclasses.fields(old)  # type: ignore[arg-type]
            if field.name not in ("engine", "log_level") and getattr(old, field.name) != getattr(new, field.name)]
