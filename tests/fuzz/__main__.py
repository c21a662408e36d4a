"""Coverage-guided fuzzing of whatever reads bytes of strangers: `make fuzz`, or `python -m tests.fuzz [TARGET ...]`.

Each target runs in a process of its own, from its seeds and from what earlier runs found worth keeping. It fails by an
exception that its code does not document, by 20 s with one input, and by 3 GB of memory; the input is kept. Needs the
package atheris (for Python 3.11 to 3.13).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.targets import TARGETS, load

MOST_SECONDS_OF_ONE = 20
MOST_MEGABYTES = 3072
MOST_BYTES = 8192  # of an input: beyond, each takes longer and says no more
_COVERAGE = re.compile(r"\bcov: (\d+)")
_EXECUTIONS = re.compile(r"stat::number_of_executed_units: +(\d+)|^#(\d+)\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    name: str
    executions: int
    coverage: int  # edges of our code that were reached
    seconds: float
    crashes: list[Path]  # inputs that this run failed by
    exit_status: int

    @property
    def line(self) -> str:
        said = "failed: " + ", ".join(map(str, self.crashes)) if self.exit_status else "no failure"
        return (f"{self.name:12} {self.executions:>9} executions  {self.coverage:>6} edges  {self.seconds:6.0f} s  "
                f"{said}")


def main(arguments: list[str]) -> int:
    """Returns 1 where a target failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what reads bytes of strangers.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} [all]")
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="for each target [60]")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), metavar="DIR",
                        help="keeps corpora, logs and the inputs that failed [build/fuzz]")
    options = parser.parse_args(arguments)
    if unknown := set(options.targets) - TARGETS.keys():
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    if importlib.util.find_spec("atheris") is None:
        parser.error("the package atheris is not installed; make fuzz installs it (Python 3.11 to 3.13)")
    outcomes = []
    for name in options.targets or TARGETS:
        outcome = fuzz(name, options.seconds, options.folder)
        outcomes.append(outcome)
        print(outcome.line, flush=True)
    failed = [outcome for outcome in outcomes if outcome.exit_status]
    for outcome in failed:
        print(f"\n{options.folder / outcome.name}.log ends:\n{_end_of_log(options.folder, outcome)}")
    return 1 if failed else 0


def fuzz(name: str, seconds: int, folder: Path) -> Outcome:
    """One target's run; its log, corpus and failed inputs are in `folder`."""
    corpus, failed, log = folder / "corpus" / name, folder / "failed" / name, folder / f"{name}.log"
    for made in (corpus, failed):
        made.mkdir(parents=True, exist_ok=True)
    for seed in load(name).seeds():
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    before = set(failed.iterdir())
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.one", name, f"-max_total_time={seconds}", f"-artifact_prefix={failed}/",
             f"-timeout={MOST_SECONDS_OF_ONE}", f"-rss_limit_mb={MOST_MEGABYTES}", f"-max_len={MOST_BYTES}",
             "-print_final_stats=1", str(corpus)],
            stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"TMPDIR": scratch, "OMP_NUM_THREADS": "1"})
    said = log.read_text(errors="replace")
    executions = max((int(a or b) for a, b in _EXECUTIONS.findall(said)), default=0)
    coverage = max(map(int, _COVERAGE.findall(said)), default=0)
    return Outcome(name, executions, coverage, time.monotonic() - begun, sorted(set(failed.iterdir()) - before),
                   done.returncode)


def _end_of_log(folder: Path, outcome: Outcome) -> str:
    lines = (folder / f"{outcome.name}.log").read_text(errors="replace").splitlines()
    traces = [i for i, line in enumerate(lines) if "Uncaught Python exception" in line]
    return "\n".join(lines[traces[-1]:][:40] if traces else lines[-20:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
