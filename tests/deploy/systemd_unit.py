"""The shipped systemd unit as systemd reads it: directives, specifiers, and the system call filter as a program.

Only what tests need: directives that are given again are lists; libseccomp compiles the filter, as it does for systemd.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SYSTEMD = ROOT / "deploy" / "systemd"
UNIT = SYSTEMD / "quire.service"

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_SECONDS = {"": 1, "s": 1, "min": 60, "h": 3600}


class Unit:
    def __init__(self, path: Path, name: str = "quire") -> None:
        """`name` without its suffix, for the specifiers."""
        self._specifiers = {"%N": name, "%d": f"/run/credentials/{name}.service"}
        self._values: dict[str, list[str]] = {}
        for line in path.read_text().splitlines():
            if "=" in line and not line.startswith("#"):
                key, _, value = line.partition("=")
                for specifier, meaning in self._specifiers.items():
                    value = value.replace(specifier, meaning)
                self._values.setdefault(key, []).append(value)

    def all(self, key: str) -> list[str]:
        return self._values.get(key, [])

    def one(self, key: str) -> str:
        (value,) = self._values[key]
        return value

    def seconds(self, key: str) -> float:
        number, unit = re.fullmatch(r"(\d+)(\w*)", self.one(key)).groups()  # type: ignore[union-attr]
        return float(number) * _SECONDS[unit]

    @property
    def environment(self) -> dict[str, str]:
        return dict(variable.split("=", 1) for variable in self.all("Environment"))

    def allowed_calls(self) -> set[str]:
        allowed: set[str] = set()
        for value in self.all("SystemCallFilter"):
            names = {name for word in value.lstrip("~").split() for name in _members(word)}
            allowed = allowed - names if value.startswith("~") else allowed | names
        return allowed | _members("@default")

    def filter_program(self, path: Path) -> None:
        """Write the filter as the kernel takes it. Raises OSError without libseccomp."""
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        library.seccomp_init.restype = ctypes.c_void_p
        context = ctypes.c_void_p(library.seccomp_init(_ERRNO | getattr(errno, self.one("SystemCallErrorNumber"))))
        for name in self.allowed_calls():
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number >= 0:  # negative: this architecture has none of that name
                assert library.seccomp_rule_add(context, _ALLOW, number, 0) == 0, name
        with path.open("wb") as file:
            assert library.seccomp_export_bpf(context, file.fileno()) == 0
        library.seccomp_release(context)


@functools.cache
def _members(word: str) -> frozenset[str]:
    """The system calls of a name or of a set, sets in sets included."""
    if not word.startswith("@"):
        return frozenset({word})
    listing = subprocess.run(["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True)
    words = [line.strip() for line in listing.stdout.splitlines() if re.fullmatch(r"\s+[@\w-]+", line)]
    return frozenset(name for inner in words for name in _members(inner))
