"""The measurements by name: `quire bench NAME ...`, `python -m quire.loadtest NAME ...`. Each module has a
`main(argv)`."""

from __future__ import annotations

import difflib
import importlib
import sys

from quire.engine.errors import QuireError

MEASUREMENTS = {
    "throughput": ("throughput", "offline: how fast the engine works off a workload, beside recorded peers"),
    "serve": ("serve_client", "HTTP: a workload against a running OpenAI-compatible server"),
    "sweep": ("sweep", "HTTP: the rate up to which requests are served well, and what goes on far beyond it"),
    "growth": ("growth", "of a running server: do memory, open files or threads of its processes grow, hour by hour?"),
    "steps": ("step_times", "offline: where the time of a step goes, on the host and on the device"),
    "start": ("start_times", "offline: how long a start takes, phase by phase, on a new machine and again"),
    "features": ("features", "offline: what penalties, logprobs, grammars and the like cost a step"),
    "images": ("images", "offline: images a second, time to first token, what they cost the text beside them"),
    "overhead": ("overhead", "HTTP: what keys, limits, deadlines, logs, metrics and traces cost together"),
    "side-by-side": ("side_by_side", "this tree beside another checkout, in turns: did anything become slower?"),
    "cpu-weights": ("cpu_weights", "a model on this CPU in float32, float16 and int8: speed, memory, replies"),
    "transformers": ("compare_transformers", "SmolLM2 on this machine, side by side with transformers"),
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in MEASUREMENTS:
        is_help = argv[:1] in (["--help"], ["-h"])
        out = sys.stdout if is_help else sys.stderr
        if argv and not is_help:
            near = difflib.get_close_matches(argv[0], MEASUREMENTS, n=1)
            print(f"quire bench: there is no {argv[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""), file=out)
            return 2
        print("usage: quire bench NAME [--help | flags]\n", file=out)
        for name, (_, purpose) in MEASUREMENTS.items():
            print(f"  {name:14}{purpose}", file=out)
        return 0 if is_help else 2
    try:
        # Each brings libraries that the others do without.
        module = importlib.import_module(f"quire.loadtest.{MEASUREMENTS[argv[0]][0]}")
    except ModuleNotFoundError as error:
        print(f"quire bench {argv[0]}: the package {error.name} is not installed; run: pip install {error.name}, or "
              "make install-dev in a checkout", file=sys.stderr)
        return 2
    try:
        return int(module.main(argv[1:]))
    except QuireError as error:
        for problem in str(error).splitlines():
            print(f"quire bench {argv[0]}: {problem}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
