"""The least of what machine and control groups have left is what may be taken."""

from __future__ import annotations

from pathlib import Path

from quire.engine.host_memory import free_and_total

MIB = 2**20


class Machine:
    def __init__(self, path: Path) -> None:
        self._path = path
        (path / "meminfo").write_text("MemTotal: 8192 kB\nMemFree: 100 kB\nMemAvailable: 4096 kB\n")
        (path / "own").write_text("4:memory:/a/b\n3:cpu,cpuacct:/c\n0::/a/b\n")

    def group(self, path: str, stat: str = "anon 1\n", **files: str) -> None:
        (self._path / path).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (self._path / path / f"memory.{name}").write_text(content)
        (self._path / path / "memory.stat").write_text(stat)

    @property
    def available(self) -> int:
        return self.memory[0]

    @property
    def memory(self) -> tuple[int, int]:
        return free_and_total(f"{self._path}/meminfo", str(self._path / "cgroup"), str(self._path / "own"))


def test_a_machine_without_limits_has_what_the_kernel_says(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.memory == (4 * MIB, 8 * MIB)
    machine.group("cgroup", max="max\n", current="5\n")
    (tmp_path / "own").unlink()
    assert machine.memory == (4 * MIB, 8 * MIB)


def test_every_group_around_the_process_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.group("cgroup/a", max=f"{3 * MIB}\n", current="0\n")
    assert machine.available == 3 * MIB
    machine.group("cgroup/a/b", max=f"{2 * MIB}\n", current=f"{MIB}\n")
    assert machine.available == MIB
    machine.group("cgroup/memory/a/b", limit_in_bytes=f"{MIB}\n", usage_in_bytes="9\n")
    assert machine.memory == (MIB - 9, MIB)
    machine.group("cgroup", max="50\n", current="60\n")  # all that a container sees
    assert machine.available == 0


def test_what_the_kernel_keeps_of_files_is_free(tmp_path: Path) -> None:
    """A container that has just read its weights is full of them."""
    machine = Machine(tmp_path)
    machine.group("cgroup", "anon 1\ninactive_file 30\nactive_file 4\n", max="100\n", current="90\n")
    assert machine.available == 44
    machine.group("cgroup/memory", "active_file 1\ntotal_inactive_file 3\ntotal_active_file 4\n",
                  limit_in_bytes="100\n", usage_in_bytes="90\n")
    assert machine.available == 17
