"""Why a process ended that SIGKILL ended: the kernel counts whom it kills when memory runs out.

Called by whoever starts an engine: the launcher and AsyncLLMEngine.
"""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from quire.engine.host_memory import own_groups

_FILES = ("memory.events", "memory.oom_control")  # of the second version of control groups, and of the first


class OomKills:
    """The counts as they were at construction, to be made before the process starts."""

    def __init__(self, vmstat: str = "/proc/vmstat", cgroup: str = "/sys/fs/cgroup",
                 own: str = "/proc/self/cgroup") -> None:
        self._machine_files = [Path(vmstat)]
        self._group_files = [group / name for group in own_groups(Path(cgroup), Path(own)) for name in _FILES]
        self._before = self._counts()

    def cause(self, code: int) -> str:
        """Of an end with `code`, the exit code or minus the signal's number."""
        if code != -signal.SIGKILL:
            return "crash"
        (groups, machine), (groups_before, machine_before) = self._counts(), self._before
        if groups is not None and groups > (groups_before or 0):
            return "killed for memory"
        if groups is None or machine is None or machine > (machine_before or 0):
            return "killed, probably for memory"
        return "killed from outside"  # by somebody, or a program that watches memory

    def _counts(self) -> tuple[int | None, int | None]:
        """Kills in the groups that this process is in, and on the machine; None where nobody says."""
        return _sum(self._group_files), _sum(self._machine_files)


def _sum(files: list[Path]) -> int | None:
    found = []
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            found += [int(words[1]) for line in file.read_text().splitlines()
                      if len(words := line.split()) == 2 and words[0] == "oom_kill"]
    return sum(found) if found else None
