"""How much memory may still be taken: of the machine's, and of every control group that this process is in.

Refuses to know devices and what the memory is for. Called before something large is taken for good.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# A group's limit, and what is in use: of the second version of control groups and of the first.
_V2 = ("memory.max", "memory.current")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def available_bytes() -> int:
    return free_and_total()[0]


def free_and_total(meminfo: str = "/proc/meminfo", cgroup: str = "/sys/fs/cgroup",
                   own: str = "/proc/self/cgroup") -> tuple[int, int]:
    """Bytes that may be taken now, without swapping, and ever: the least of what the machine and the groups allow."""
    machine = _numbers(Path(meminfo))
    free, total = int(machine["MemAvailable:"]) * 1024, int(machine["MemTotal:"]) * 1024
    for group, (limit_file, usage_file) in _groups(Path(cgroup), Path(own)):
        try:
            limit, usage = int((group / limit_file).read_text()), int((group / usage_file).read_text())
            left = limit - usage + _cached_bytes(group / "memory.stat")
        except (OSError, ValueError):  # another version, a container that does not see the groups it is in, or "max"
            continue
        free, total = min(free, max(0, left)), min(total, limit)
    return free, total


def own_groups(root: Path, own: Path) -> list[Path]:
    """The directories of the control groups that this process is in, and of those around them, of either version."""
    return [group for group, _ in _groups(root, own)]


def _groups(root: Path, own: Path) -> Iterator[tuple[Path, tuple[str, str]]]:
    """The process' own and those that they lie in: each may have a limit. In a container the outermost is often all
    that can be seen."""
    yield root, _V2
    yield root / "memory", _V1
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        base, files = (root / "memory", _V1) if controllers == "memory" else (root, _V2)
        if controllers in ("", "memory"):
            parts = Path(path).parts[1:]
            for depth in range(len(parts)):
                yield base.joinpath(*parts[:depth + 1]), files


def _cached_bytes(stat: Path) -> int:
    """Of files that were read: they count as used, and the kernel forgets them when the memory is asked for."""
    numbers = _numbers(stat)
    return sum(int(numbers.get(f"total_{name}", numbers.get(name, 0))) for name in ("inactive_file", "active_file"))


def _numbers(path: Path) -> dict[str, str]:
    return {words[0]: words[1] for line in path.read_text().splitlines() if len(words := line.split()) > 1}
