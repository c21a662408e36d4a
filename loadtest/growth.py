"""`quire bench growth`: do memory, open files or threads of a running server grow, while something else is its load?

Looks at a process and all below it each --every seconds, for --seconds, and prints of each kind of process what it had
at the first look that counts, at the last, and the slope by least squares, an hour. The first --warm-up seconds do not
count. Memory is each process's share of what it maps (PSS). Exits 1 where all together grow faster than --most-mib,
--most-files or --most-threads an hour.

    quire bench growth --pid $(pgrep -of 'quire serve') --seconds 1800 &
    QUIRE_SHAPE=soak QUIRE_WORKLOAD=mixed QUIRE_SLO_DRIFT=1.3 locust -f loadtest/locustfile.py --headless --host ...
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from quire.app.command_parser import CommandParser
from quire.engine.errors import ConfigError
from quire.loadtest.arguments import count, positive, writable

_PROC = Path("/proc")
_LEAST_LOOKS = 3
_HOUR_S = 3600.0


@dataclass(frozen=True)
class Held:
    """By one or more processes."""

    mib: float = 0.0
    files: int = 0
    threads: int = 0
    processes: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True)
class Look:
    at: float  # seconds
    held: dict[str, Held]  # by kind of process

    @property
    def whole(self) -> Held:
        return sum(self.held.values(), Held())


def look(pid: int, at: float) -> Look:
    """At the process and all that it started, directly or not. Raises ConfigError if it is gone."""
    held: dict[str, Held] = defaultdict(Held)
    for process in _tree(pid):
        found = _held(process)
        if found is not None:  # else it ended just now
            held[_kind(process)] += found
    if not held:
        raise ConfigError(f"--pid: there is no process {pid}, or it may not be looked at")
    return Look(at, dict(held))


def _tree(pid: int) -> Iterator[int]:
    children: dict[int, list[int]] = defaultdict(list)
    for folder in _PROC.iterdir():
        if folder.name.isdecimal():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children[parent].append(int(folder.name))
    open_ = [pid]
    while open_:
        process = open_.pop()
        yield process
        open_ += children[process]


def _held(pid: int) -> Held | None:
    folder = _PROC / str(pid)
    try:
        pss = next(line for line in (folder / "smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
        return Held(int(pss.split()[1]) / 1024, len(list((folder / "fd").iterdir())),
                    len(list((folder / "task").iterdir())), 1)
    except (OSError, StopIteration):
        return None


def _kind(pid: int) -> str:
    """The first words of the command that say what it is; of Python's own `-c`, what follows the program."""
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "ended"
    if words[1:2] == ["-c"] and len(words) > 3:
        words = words[3:4]
    return " ".join(Path(word).name for word in words[:4] if word and not word.startswith("-"))[:40] or "without a name"


def slope(looks: list[Look], value: Callable[[Look], float]) -> float:
    """By least squares, an hour."""
    mean_at = sum(one.at for one in looks) / len(looks)
    mean = sum(map(value, looks)) / len(looks)
    over = sum((one.at - mean_at) ** 2 for one in looks)
    return _HOUR_S * sum((one.at - mean_at) * (value(one) - mean) for one in looks) / over if over else 0.0


def watch(pid: int, *, seconds: float, every: float, warm_up: float, clock: Callable[[], float],
          sleep: Callable[[float], None]) -> list[Look]:
    """The looks that count."""
    start = clock()
    looks = []
    while (now := clock() - start) <= seconds:
        if now >= warm_up:
            looks.append(look(pid, now))
        sleep(every)
    return looks


def told(looks: list[Look]) -> list[str]:
    lines = [f"{'':40}{'MiB':>22}{'files':>18}{'threads':>18}{'processes':>12}"]
    for kind in sorted(set().union(*(one.held for one in looks))):
        lines.append(_line(kind, looks, lambda one, kind=kind: one.held.get(kind, Held())))  # type: ignore[misc]
    return [*lines, _line("all", looks, lambda one: one.whole)]


def _line(name: str, looks: list[Look], held: Callable[[Look], Held]) -> str:
    first, last = held(looks[0]), held(looks[-1])
    mib = f"{first.mib:.1f} {last.mib:.1f} {slope(looks, lambda one: held(one).mib):+.1f}/h"
    files = f"{first.files} {last.files} {slope(looks, lambda one: held(one).files):+.1f}/h"
    threads = f"{first.threads} {last.threads} {slope(looks, lambda one: held(one).threads):+.1f}/h"
    return f"{name:40}{mib:>22}{files:>18}{threads:>18}{f'{first.processes} {last.processes}':>12}"


def grown(looks: list[Look], most: dict[str, float]) -> list[str]:
    """What grows faster than it may; `most` by the fields of Held, an hour."""
    found = {name: slope(looks, lambda one, name=name: getattr(one.whole, name)) for name in most}  # type: ignore[misc]
    return [f"{name} grow by {found[name]:.1f} an hour; at most {limit:g} are allowed (--most-{name})"
            for name, limit in most.items() if found[name] > limit]


def main(argv: list[str]) -> int:
    args = _parse(argv)
    looks = watch(args.pid, seconds=args.seconds, every=args.every, warm_up=args.warm_up, clock=time.monotonic,
                  sleep=time.sleep)
    if len(looks) < _LEAST_LOOKS:
        raise ConfigError(f"--seconds, --every, --warm-up: {len(looks)} looks count; {_LEAST_LOOKS} are needed")
    print("\n".join(told(looks)))
    if args.json is not None:
        args.json.write_text(json.dumps([{"at": one.at, **{kind: vars(held) for kind, held in one.held.items()}}
                                         for one in looks]) + "\n")
    problems = grown(looks, {"mib": args.most_mib, "files": args.most_files, "threads": args.most_threads})
    for problem in problems:
        print(f"quire bench growth: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = CommandParser(prog="quire bench growth", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pid", type=count, required=True, help="of `quire serve`")
    parser.add_argument("--seconds", type=positive, default=1800.0, metavar="S", help="in all [1800]")
    parser.add_argument("--every", type=positive, default=10.0, metavar="S", help="between two looks [10]")
    parser.add_argument("--warm-up", type=positive, default=300.0, metavar="S", help="that do not count [300]")
    parser.add_argument("--most-mib", type=positive, default=20.0, metavar="N", help="an hour [20]")
    parser.add_argument("--most-files", type=positive, default=2.0, metavar="N", help="an hour [2]")
    parser.add_argument("--most-threads", type=positive, default=2.0, metavar="N", help="an hour [2]")
    parser.add_argument("--json", type=writable, metavar="FILE", help="write all looks there")
    return parser.parse_args(argv)
