"""gunicorn's configuration, made of what the launcher left in the run directory. Loaded in gunicorn's master.

The listening sockets are the launcher's, save that for probes; the master never imports the application.
"""

from __future__ import annotations

import math
import os
from typing import Any

import structlog

from quire.app.probe import listen_for_probes
from quire.app.tls import keep_for_workers
from quire.app.worker import GRACE_S
from quire.app.worker_deaths import WINDOW_S, WorkerDeaths
from quire.app.worker_settings import WorkerSettings
from quire.engine.exit_codes import EXIT_BROKEN
from quire.engine.lifeline import die_with_parent
from quire.engine.logs import configure_logging

_settings = WorkerSettings.from_run_dir(os.environ["QUIRE_RUN_DIR"])
configure_logging(_settings.serve.log_level)
die_with_parent()
if os.getppid() != int(os.environ["QUIRE_LAUNCHER_PID"]):
    raise SystemExit("the launcher is gone")
keep_for_workers(_settings.serve)

wsgi_app = "quire.app.main:from_run_dir()"
bind = [f"fd://{os.environ[name]}" for name in ("QUIRE_LISTEN_FD", "QUIRE_ADMIN_FD") if name in os.environ]
try:
    bind.append(f"fd://{listen_for_probes(_settings.run_dir).detach()}")
except OSError as error:
    raise SystemExit(f"--run-dir: no socket can be made in {_settings.run_dir}: {error.strerror}") from None
worker_class = "quire.app.worker.HttpWorker"
workers = _settings.serve.num_http_workers
preload_app = False
graceful_timeout = math.ceil(_settings.serve.shutdown_timeout) + GRACE_S
timeout = 60  # a worker whose event loop stood still for so long is replaced
max_requests = 0  # recycling would cut streams
backlog = 2048
worker_tmp_dir = _settings.run_dir
control_socket_disable = True
logger_class = "quire.app.telemetry.logging.GunicornLogger"
loglevel = _settings.serve.log_level
accesslog = None


_log = structlog.get_logger("quire")
_deaths = WorkerDeaths(_settings.serve.num_http_workers)


def child_exit(server: Any, worker: Any) -> None:
    # Late: the master has no other use for it, and it reads PROMETHEUS_MULTIPROC_DIR when imported.
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)
    if _deaths.too_many():
        _log.error("HTTP workers end again and again", ended=_deaths.most + 1, within_s=WINDOW_S)
        raise SystemExit(EXIT_BROKEN)  # at once: the launcher is to know, and no worker to be waited for
