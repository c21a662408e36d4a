"""`make bench`: SmolLM2 in float32 on this CPU, ours against transformers `generate`, side by side in one run.

16 requests at once and one alone, 64 prompt and 128 new tokens each, greedy, eos ignored; transformers runs the 16 as
one static batch. Each contender is a process of its own; they take turns, so that a slow minute of the machine hits
all of them, and medians are compared. `--http` adds a real `quire serve`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from quire.app.command_parser import CommandParser
from quire.engine.errors import ConfigError
from quire.loadtest.arguments import count, writable
from quire.loadtest.workloads import HIGHEST_ID, LOWEST_ID

PROMPT_LEN, OUTPUT_LEN = 64, 128
BATCHES = (16, 1)
READY_WITHIN_S = 120
Batch = list[list[int]]
Generate = Callable[[Batch], int]  # runs a batch to its end, returns how many tokens came out


def _transformers(num_threads: int) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from quire.engine.config import EngineArgs
    from quire.engine.weights.locate import resolve_model

    torch.set_num_threads(num_threads)
    logging.disable_progress_bar()
    file = Path(resolve_model(EngineArgs()).path)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    if model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr():
        raise RuntimeError("this version of transformers left lm_head untied from the embedding: its output is random")

    def generate(batch: Batch) -> int:
        ids = torch.tensor(batch)
        with torch.inference_mode():
            output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                                    min_new_tokens=OUTPUT_LEN, max_new_tokens=OUTPUT_LEN)
        return (output.shape[1] - ids.shape[1]) * len(batch)

    return generate


def _quire(num_threads: int) -> Generate:
    from quire import LLM, SamplingParams

    llm = LLM(dtype="float32", device="cpu", cpu_threads=num_threads)
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=OUTPUT_LEN)

    def generate(batch: Batch) -> int:
        return sum(len(output.outputs[0].token_ids) for output in llm.generate(list(batch), params, use_tqdm=False))

    return generate


def _contender(build: Callable[[int], Generate], num_threads: int, pipe: Connection) -> None:
    """A contender's process: builds, then generates for every batch that comes down the pipe."""
    generate = build(num_threads)
    generate([_prompt(random.Random(1))])
    pipe.send(None)
    while (batch := pipe.recv()) is not None:
        begin = time.perf_counter()
        num_tokens = generate(batch)
        pipe.send(num_tokens / (time.perf_counter() - begin))


class Offline:
    """A contender that runs in a process of its own and is spoken to through a pipe."""

    def __init__(self, build: Callable[[int], Generate], num_threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        begin = time.perf_counter()
        self._process = context.Process(target=_contender, args=(build, num_threads, theirs))
        self._process.start()
        theirs.close()
        self._receive()
        self.start_s = time.perf_counter() - begin

    def tokens_per_s(self, batch: Batch) -> float:
        self._pipe.send(batch)
        return float(self._receive())

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise ConfigError("a contender's process ended; what it said stands above") from None

    def resident_bytes(self) -> int:
        assert self._process.pid is not None
        return resident_bytes(self._process.pid)

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it ended by itself
            self._pipe.send(None)
        self._process.join()


class Http:
    """`quire serve` with one connection per request of a batch."""

    def __init__(self, num_threads: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        begin = time.perf_counter()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "quire", "serve", "--port", str(port), "--dtype", "float32", "--device", "cpu",
             "--cpu-threads", str(num_threads), "--served-model-name", "smollm2"], stderr=subprocess.DEVNULL)
        while not self._ready():
            if self._server.poll() is not None or time.perf_counter() - begin > READY_WITHIN_S:
                self.close()
                raise ConfigError(f"quire serve did not become ready (exit code {self._server.returncode})")
            time.sleep(0.02)
        self.start_s = time.perf_counter() - begin
        self.tokens_per_s([_prompt(random.Random(1))])

    def _ready(self) -> bool:
        try:
            return bool(urllib.request.urlopen(f"{self._url}/readyz", timeout=1).status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _complete(self, ids: list[int]) -> int:
        body = {"model": "smollm2", "prompt": ids, "max_tokens": OUTPUT_LEN, "temperature": 0, "ignore_eos": True}
        request = urllib.request.Request(f"{self._url}/v1/completions", json.dumps(body).encode(),
                                         {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as response:
            return int(json.load(response)["usage"]["completion_tokens"])

    def tokens_per_s(self, batch: Batch) -> float:
        with ThreadPoolExecutor(len(batch)) as threads:
            begin = time.perf_counter()
            num_tokens = sum(threads.map(self._complete, batch))
            return num_tokens / (time.perf_counter() - begin)

    def resident_bytes(self) -> int:
        return sum(resident_bytes(pid) for pid in family(self._server.pid))

    def close(self) -> None:
        self._server.send_signal(signal.SIGTERM)
        self._server.wait()


def resident_bytes(pid: int) -> int:
    """Its resident memory, where a page that n processes share counts 1/n (so that a family's members add up)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no Pss line")


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in family(int(child)))]


def _prompt(rng: random.Random) -> list[int]:
    return [rng.randrange(LOWEST_ID, HIGHEST_ID) for _ in range(PROMPT_LEN)]


def main(argv: list[str]) -> int:
    parser = CommandParser(prog="quire bench transformers", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=count, default=3, help="turns per contender")
    parser.add_argument("--threads", type=count, default=len(os.sched_getaffinity(0)), help="CPU threads of each")
    parser.add_argument("--http", action="store_true", help="also through quire serve")
    parser.add_argument("--json", type=writable, metavar="FILE", help="write the results here too")
    args = parser.parse_args(argv)

    contenders: dict[str, Offline | Http] = {}
    try:
        builds: dict[str, Callable[[], Offline | Http]] = {
            "transformers": lambda: Offline(_transformers, args.threads),
            "quire": lambda: Offline(_quire, args.threads)}
        if args.http:
            builds["quire over HTTP"] = lambda: Http(args.threads)
        _tell(f"SmolLM2 on {args.threads} CPU thread(s), {' and '.join(builds)}, {args.repeats} round(s); "
              "how long the rest takes is told after each")
        for name, build in builds.items():
            _tell(f"starting {name}")
            contenders[name] = build()
        results = _measure(contenders, args.repeats)
    finally:
        for contender in contenders.values():
            contender.close()
    _print(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def _measure(contenders: dict[str, Offline | Http], repeats: int) -> dict[str, dict[str, Any]]:
    rng = random.Random(0)
    rates: dict[str, dict[int, list[float]]] = {name: {n: [] for n in BATCHES} for name in contenders}
    began = time.perf_counter()
    for turn in range(repeats):
        for num_requests in BATCHES:
            for name, contender in contenders.items():
                # Each sees prompts of its own, so that no cached prefix answers.
                batch = [_prompt(rng) for _ in range(num_requests)]
                rates[name][num_requests].append(contender.tokens_per_s(batch))
                _tell(f"{name}, {num_requests} at once: {rates[name][num_requests][-1]:.1f} tok/s")
        _tell(_time_left(time.perf_counter() - began, turn + 1, repeats))
    results: dict[str, dict[str, Any]] = {}
    for name, contender in contenders.items():
        medians = {f"tok_s_{n}": round(statistics.median(rates[name][n]), 1) for n in BATCHES}
        results[name] = {**medians, "start_s": round(contender.start_s, 1),
                         "resident_mb": round(contender.resident_bytes() / 1e6)}
    return results


def _time_left(took_s: float, done: int, rounds: int) -> str:
    return f"round {done} of {rounds} done" + (
        f", about {took_s / done * (rounds - done):.0f} s to go" if done < rounds else "")


def _tell(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _print(results: dict[str, dict[str, Any]]) -> None:
    base = results["transformers"]
    columns = [f"tok_s_{n}" for n in BATCHES]
    print(f"{'':18}" + "".join(f"{f'{n} at once, tok/s':>24}" for n in BATCHES) + f"{'start, s':>10}{'memory, MB':>12}")
    for name, row in results.items():
        print(f"{name:18}" + "".join(f"{f'{row[c]:g} ({row[c] / base[c]:.2f}x)':>24}" for c in columns)
              + f"{row['start_s']:>10}{row['resident_mb']:>12}")
