"""What this server's processes cost, by name: memory, CPU time, open files; read from /proc at each scrape.

Knows the processes by their place in the tree (launcher; gunicorn's master and the engine under it; workers under the
master), so that it holds in any worker and after any of them was replaced. Linux only, as the rest of the server.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass
class _Usage:
    num_processes: int = 0
    rss_bytes: int = 0
    num_fds: int = 0
    cpu_s: float = 0.0
    reaped_cpu_s: float = 0.0  # of its children that ended
    children: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, pids: Iterable[int]) -> _Usage:
        total = cls()
        for pid in pids:
            with suppress(*_GONE):  # it ended while we looked
                total._add(Path(f"/proc/{pid}"))
        return total

    def _add(self, proc: Path) -> None:
        # After the name in brackets, which may hold anything: state is field 0, utime field 11, rss field 21.
        stat = (proc / "stat").read_bytes().rpartition(b")")[2].split()
        self.cpu_s += (int(stat[11]) + int(stat[12])) / _TICKS  # first: of one that ended only this is left
        self.reaped_cpu_s += (int(stat[13]) + int(stat[14])) / _TICKS
        self.rss_bytes += int(stat[21]) * _PAGE_BYTES
        for task in (proc / "task").iterdir():
            self.children += map(int, (task / "children").read_text().split())
        self.num_fds += len(os.listdir(proc / "fd"))
        self.num_processes += stat[0] != b"Z"


class ProcessCollector(Collector):
    def collect(self) -> Iterable[Metric]:
        usages = self._usages()
        for name, text, attribute in (
                ("quire:processes", "Processes by name", "num_processes"),
                ("quire:process_resident_memory_bytes", "Resident memory by process name", "rss_bytes"),
                ("quire:process_open_fds", "Open file descriptors by process name", "num_fds")):
            gauge = GaugeMetricFamily(name, text, labels=["process"])
            for process, usage in usages.items():
                gauge.add_metric([process], getattr(usage, attribute))
            yield gauge
        cpu = CounterMetricFamily("quire:process_cpu_seconds", "CPU time by process name, of ended ones too",
                                  labels=["process"])
        for process, usage in usages.items():
            cpu.add_metric([process], usage.cpu_s)
        yield cpu

    def _usages(self) -> dict[str, _Usage]:
        # A worker's parent is gunicorn's master, and the master's the launcher (or, in tests, whoever they may be).
        master_pid = os.getppid()
        launcher, master = _Usage.of([_parent_of(master_pid)]), _Usage.of([master_pid])
        workers = _Usage.of(master.children)
        engine = _Usage.of(pid for pid in launcher.children if pid != master_pid)
        # What a parent reaped counts for the children's name, or their counter would fall when one is replaced.
        workers.cpu_s += master.reaped_cpu_s
        engine.cpu_s += launcher.reaped_cpu_s
        return {"launcher": launcher, "engine": engine, "http_master": master, "http_worker": workers}


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
