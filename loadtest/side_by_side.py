"""`quire bench side-by-side --before DIR`: this tree beside another checkout of Quire, in turns on one machine.

Shows that a change of a step, or of how a token gets to its client, made nothing slower. Each round runs `quire bench
throughput` in one tree and then in the other, the next round in the opposite order; with --http also a server and
`quire bench serve`. Prints a table of medians with the ratio after / before, below 1 where this tree is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quire.app.command_parser import CommandParser
from quire.engine.errors import ConfigError
from quire.loadtest.arguments import count, writable

HERE = Path(__file__).absolute().parents[2]
WORKLOADS = "single,decode,prefill,sharegpt"
READY_WITHIN_S = 300.0
Figures = dict[str, list[float]]


def main(argv: list[str]) -> int:
    args = _parse(argv)
    trees = {"before": Path(args.before).absolute(), "after": HERE}
    found: dict[str, Figures] = {name: defaultdict(list) for name in trees}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(args.rounds):
            for name in sorted(trees, reverse=turn % 2 == 0):
                for model in args.model:
                    for figure, value in _offline(trees[name], model, args, Path(scratch)).items():
                        found[name][f"{Path(model).name} {figure}"].append(value)
                for figure, value in (_http(trees[name], args) if args.http else {}).items():
                    found[name][f"HTTP {figure}"].append(value)
                print(f"round {turn + 1} of {args.rounds}, {name}: done", file=sys.stderr, flush=True)
    rows = table(found["before"], found["after"])
    print("\n".join(rows), flush=True)
    if args.markdown:
        Path(args.markdown).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return 0


def table(before: Figures, after: Figures) -> list[str]:
    """Markdown: each figure's medians and their ratio."""
    rows = ["| figure | before | after | after / before |", "|---|---|---|---|"]
    for figure, values in before.items():
        if after.get(figure):
            was, now = statistics.median(values), statistics.median(after[figure])
            rows.append(f"| {figure} | {was:g} | {now:g} | {now / was:.3f} |")
    return rows


def command(tree: Path) -> list[str]:
    """How a tree is started: `python -m` and its name there."""
    return [sys.executable, "-m", "quire" if (tree / "quire" / "__main__.py").exists() else "app"]


def _environment(tree: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))}


def _offline(tree: Path, model: str, args: argparse.Namespace, scratch: Path) -> dict[str, float]:
    out = scratch / "figures.json"
    done = subprocess.run(
        [*command(tree), "bench", "throughput", "--model", str(Path(model).absolute()), "--workload", args.workload,
         "--json", str(out), *args.flag], cwd=tree, env=_environment(tree), stdout=subprocess.DEVNULL)
    if done.returncode:
        raise ConfigError(f"{tree}: quire bench throughput ended with {done.returncode}")
    figures = json.loads(out.read_text(encoding="utf-8"))
    flat = {"start, s": figures["startup_s"]}
    for workload in args.workload.split(","):
        result = figures[workload]
        flat |= ({f"{workload} {name.replace('_', ', ')}": result[name] for name in ("ttft_ms", "tpot_ms")}
                 if "tpot_ms" in result else {f"{workload}, s": result["s"]})
    return flat


def _http(tree: Path, args: argparse.Namespace) -> dict[str, float]:
    with _server(tree, args) as url:
        flat = {}
        for rate in (0.0, args.rate):
            done = subprocess.run(
                [*command(tree), "bench", "serve", "--url", url, "--model", "m", "--vocab", str(args.http_vocab),
                 "--rate", str(rate)], cwd=tree, env=_environment(tree), stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise ConfigError(f"{tree}: quire bench serve ended with {done.returncode}")
            result = json.loads(done.stdout)
            if not rate:
                flat["all at once, s"] = result["s"]
                continue
            flat |= {f"{rate:g}/s {name.removesuffix('_ms')} {quantile}, ms": result[name][quantile]
                     for name, quantile in (("ttft_ms", "p50"), ("ttft_ms", "p99"), ("tpot_ms", "p50"))}
    return flat


@contextmanager
def _server(tree: Path, args: argparse.Namespace) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    process = subprocess.Popen(
        [*command(tree), "serve", str(Path(args.http).absolute()), "--served-model-name", "m",
         "--port", url.rpartition(":")[2], *args.flag, *args.http_flag],
        cwd=tree, env=_environment(tree), stderr=subprocess.DEVNULL)
    try:
        _wait_ready(process, url)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _wait_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise ConfigError(f"the server did not get ready; exit code {process.poll()}")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = CommandParser(prog="quire bench side-by-side", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, metavar="DIR", help="the other checkout")
    parser.add_argument("--model", action="append", default=[], metavar="DIR",
                        help="for the offline figures; several are taken")
    parser.add_argument("--workload", default=WORKLOADS, help="[%(default)s]")
    parser.add_argument("--rounds", type=count, default=2, metavar="N", help="[%(default)s]")
    parser.add_argument("--flag", action="append", default=[], metavar="FLAG",
                        help="for both engines, such as --flag=--dtype=bfloat16; several are taken")
    parser.add_argument("--http", metavar="MODEL", help="serve this one too, and send it the sharegpt workload")
    parser.add_argument("--http-flag", action="append", default=[], metavar="FLAG", help="for the server only")
    parser.add_argument("--http-vocab", type=int, default=49152, metavar="N", help="its vocabulary [%(default)s]")
    parser.add_argument("--rate", type=float, default=40.0, metavar="X",
                        help="requests a second over HTTP [%(default)s]")
    parser.add_argument("--markdown", type=writable, metavar="FILE", help="write the table here too")
    args = parser.parse_args(argv)
    if not Path(args.before).is_dir():
        parser.error(f"--before: {args.before} is not a directory")
    if not (Path(args.before) / "loadtest" / "__main__.py").is_file():
        parser.error(f"--before: {args.before} is no checkout of Quire")
    if not args.model and not args.http:
        parser.error("nothing to measure: give --model or --http")
    return args
