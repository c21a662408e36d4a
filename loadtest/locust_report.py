"""What Locust's users measured, gathered from all processes of a test, as a report by their number and over time.

locustfile.py imports it where a report is wanted. Needs Locust and the standard library, so that Locust's own image can
run it with this folder beside the file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import WorkerRunner

from quire.loadtest.report.measured import Sent
from quire.loadtest.report.page import html
from quire.loadtest.report.stages import Crowd, stages, whole

_LOOK_S = 0.25
_FIELD = "quire_sent"  # of what a worker process tells the master


class LocustReport:
    """Remembers the last test of `environment`; the page of it is written to `path`, if there is one."""

    def __init__(self, environment: Environment, path: str | None) -> None:
        self._environment = environment
        self._path = Path(path) if path else None
        self.sent: list[Sent] = []  # `at` by the clock; of a worker process those not told yet
        self._crowds: list[Crowd] = []
        self._watch: gevent.Greenlet | None = None
        self.is_worker = isinstance(environment.runner, WorkerRunner)
        events = environment.events
        events.test_start.add_listener(self._begin)
        if self.is_worker:
            events.report_to_master.add_listener(self._tell)
        else:
            events.worker_report.add_listener(self._hear)
            events.test_stopping.add_listener(self._end)

    def take(self, **sent: Any) -> None:
        """A request that is over: the fields of Sent, `at` by the clock."""
        self.sent.append(Sent(**sent))

    def write(self, about: Mapping[str, str]) -> None:
        """Makes the file; nothing where none is wanted, or no request was sent."""
        if self._path is None or not self.sent or not self._crowds:
            return
        runs, all_of_it = stages(self.sent, self._crowds), whole(self.sent, self._crowds)
        told = {"server": str(self._environment.host), **about}
        self._path.write_text(html(runs or [all_of_it], told, "Locust", all_of_it if runs else None), encoding="utf-8")

    def _begin(self, **_: Any) -> None:
        self.sent.clear()
        self._crowds.clear()
        if not self.is_worker:
            self._watch = gevent.spawn(self._look)

    def _look(self) -> None:
        runner = self._environment.runner
        while runner is not None:
            users = runner.user_count
            self._crowds.append(Crowd(time.time(), users, is_whole=users == runner.target_user_count))
            gevent.sleep(_LOOK_S)

    def _end(self, **_: Any) -> None:
        """Users end from now on."""
        if self._watch is not None:
            self._watch.kill()
            self._crowds.append(Crowd(time.time(), self._crowds[-1].users if self._crowds else 0, is_whole=False))

    def _tell(self, data: dict[str, Any], **_: Any) -> None:
        data[_FIELD] = [asdict(sent) for sent in self.sent]
        self.sent.clear()

    def _hear(self, data: dict[str, Any], **_: Any) -> None:
        for fields in data.pop(_FIELD, ()):
            self.take(**fields)
