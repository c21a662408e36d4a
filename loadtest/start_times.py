"""`quire bench start`: how long an engine takes to start, phase by phase, on a new machine and again.

Each start is a process of its own. The first finds an empty kernel cache, those after it what the first compiled; the
machine's own cache of files stays warm, so a first start also reads torch's libraries from the disk. `python` is the
interpreter and our own modules, `torch` the libraries of torch; the other phases are the engine's, as `quire serve`
tells them. With `--kernel-cache DIR` that folder is used as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from quire.loadtest.arguments import add_engine_flags, count, engine_flags, offline_parser

CHILD = "QUIRE_BENCH_START"  # in the environment of a process that starts an engine: when it was made, and the flags


def main(argv: list[str]) -> int:
    if CHILD in os.environ:
        return start(**json.loads(os.environ[CHILD]))
    args = _parse(argv)
    flags = {"model": args.model, "load_format": args.load_format, "skip_tokenizer_init": True, **engine_flags(args)}
    with tempfile.TemporaryDirectory(prefix="quire-kernels-") as empty:
        environment = {**os.environ, "TRITON_CACHE_DIR": args.kernel_cache or empty}
        for number in range(args.starts):
            environment[CHILD] = json.dumps({"made_at": time.time(), "flags": flags})
            done = subprocess.run([sys.executable, "-m", "quire.loadtest", "start"], env=environment,
                                  stdout=subprocess.PIPE, text=True)
            if done.returncode:
                return done.returncode
            phases: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
            print(f"start {number + 1}: {sum(phases.values()):.1f} s; "
                  + ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in phases.items()), flush=True)
    return 0


def start(made_at: float, flags: dict[str, object]) -> int:
    """Start an engine here and print the seconds of each phase, in JSON."""
    phases: dict[str, float] = {}
    last = made_at, "python"

    def begins(phase: str, fraction: float = 0.0) -> None:
        nonlocal last
        began, before = last
        last = time.time(), phase
        phases[before] = phases.get(before, 0.0) + last[0] - began

    from quire.engine.before_torch import settle
    from quire.engine.config import EngineArgs

    settle()
    begins("torch")
    from quire.engine.assembly import assemble

    begins("placing")
    assemble(EngineArgs.of(flags), begins, offline=True)
    begins("end")
    print(json.dumps(phases))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = offline_parser("start", __doc__)
    parser.add_argument("--starts", type=count, default=2, metavar="N", help="one after the other [2]")
    parser.add_argument("--kernel-cache", metavar="DIR", help="Triton's cache [an empty folder]")
    add_engine_flags(parser)
    return parser.parse_args(argv)
