"""`quire bench cpu-weights`: one model with its weights in each form of `--cpu-weights`, and as it is packed, side by
side on this CPU.

Of each form: tokens a second, 16 requests at once and one alone, 32 prompt and 64 new tokens each; resident memory of
its process after that; and of how many chats the greedy reply begins as it does with float32, up to 16, 32 and 64
tokens. Each form is a process of its own; they take turns, so that a slow minute of the machine hits all of them, and
medians are compared.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from quire.app.command_parser import CommandParser
from quire.engine.config import DEFAULT_MODEL
from quire.engine.errors import ConfigError
from quire.engine.quantization_config import CPU_WEIGHTS, FLOAT32
from quire.loadtest.arguments import count
from quire.loadtest.workloads import HIGHEST_ID, LOWEST_ID

PROMPT_LEN, OUTPUT_LEN = 32, 64
BATCHES = (16, 1)
MAX_MODEL_LEN = 128
BLOCK_SIZE = 16
LENGTHS = (16, 32, 64)  # tokens of replies that are compared
CHATS = (
    "What is the capital of France?", "Explain how rainbows form.", "Write a short poem about the sea.",
    "List three uses of vinegar.", "How do vaccines work?", "Give me a recipe for pancakes.",
    "What is the difference between weather and climate?", "Tell me a story about a lost dog.", "Why is the sky blue?",
    "How can I sleep better at night?", "Describe the water cycle.", "What are prime numbers?",
    "Write an email asking for a day off.", "Who wrote Romeo and Juliet?", "Summarise the plot of Cinderella.",
    "What does a compiler do?", "How do I learn to play the guitar?", "Name five countries in Africa.",
    "What causes earthquakes?", "Explain gravity to a child.", "Give three tips for saving money.",
    "What is photosynthesis?", "Write a haiku about autumn.", "How does a bicycle stay upright?",
    "What is the largest planet?", "Translate 'good morning' into Spanish.", "Why do we need to drink water?",
    "What is a black hole?", "Plan a weekend in a small town.", "How do bees make honey?", "What is democracy?",
    "Explain the rules of chess in brief.")
Batch = list[list[int]]


def _contend(model: str, form: dict[str, str], num_threads: int, chats: Sequence[str], pipe: Connection) -> None:
    """A form's process: says what the chats are answered with, then how long each batch takes that comes down."""
    from quire import LLM, SamplingParams

    blocks = BATCHES[0] * -(-(PROMPT_LEN + OUTPUT_LEN) // BLOCK_SIZE) + 2
    llm = LLM(model, device="cpu", cpu_threads=num_threads, max_model_len=MAX_MODEL_LEN,
              num_gpu_blocks_override=blocks, enable_prefix_caching=False, **form)
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=OUTPUT_LEN)
    answers = llm.chat([[{"role": "user", "content": chat}] for chat in chats], params, use_tqdm=False) if chats else []
    pipe.send([list(answer.outputs[0].token_ids) for answer in answers])
    while (batch := pipe.recv()) is not None:
        begin = time.perf_counter()
        outputs = llm.generate(list(batch), params, use_tqdm=False)
        pipe.send(sum(len(output.outputs[0].token_ids) for output in outputs) / (time.perf_counter() - begin))


class Form:
    """A process with the model in one form."""

    def __init__(self, model: str, form: dict[str, str], num_threads: int, chats: Sequence[str]) -> None:
        """`form`: arguments of the engine."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_contend, args=(model, form, num_threads, chats, theirs))
        self._process.start()
        theirs.close()
        self.replies: list[list[int]] = self._receive()
        self.rates: dict[int, list[float]] = {size: [] for size in BATCHES}

    def run(self, batch: Batch) -> None:
        self._pipe.send(batch)
        self.rates[len(batch)].append(self._receive())

    def resident_mb(self) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return round(int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6)

    def close(self) -> None:
        if self._process.is_alive():
            self._pipe.send(None)
        self._process.join()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise ConfigError("a process ended; what it said stands above") from None


def main(argv: list[str]) -> int:
    parser = CommandParser(prog="quire bench cpu-weights", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="[%(default)s]")
    parser.add_argument("--quantization", metavar="METHOD",
                        help="of a model of yours: also as its checkpoint packs it, which is by METHOD")
    parser.add_argument("--repeats", type=count, default=3, help="turns of each form [%(default)s]")
    parser.add_argument("--threads", type=count, default=len(os.sched_getaffinity(0)), help="CPU threads of each")
    parser.add_argument("--chats", type=int, choices=range(len(CHATS) + 1), default=len(CHATS), metavar="N",
                        help="how many replies are compared, 0 to 32 [%(default)s]")
    args = parser.parse_args(argv)
    forms: dict[str, Form] = {}
    try:
        wanted = {name: {"cpu_weights": name} for name in CPU_WEIGHTS}
        if method := args.quantization or ("gguf" if args.model == DEFAULT_MODEL else None):
            wanted[f"packed ({method})"] = {"quantization": method}
        for name, form in wanted.items():
            print(f"  {name}: loading, answering {args.chats} chats", file=sys.stderr, flush=True)
            forms[name] = Form(args.model, form, args.threads, CHATS[:args.chats])
        rng = random.Random(0)
        for turn in range(args.repeats):
            for size in BATCHES:
                batch = [[rng.randrange(LOWEST_ID, HIGHEST_ID) for _ in range(PROMPT_LEN)] for _ in range(size)]
                for name, contender in forms.items():
                    contender.run(batch)
                    print(f"  round {turn + 1} of {args.repeats}: {name}, {size} at once, "
                          f"{contender.rates[size][-1]:.1f} tok/s", file=sys.stderr, flush=True)
        print("\n".join(table(forms)), flush=True)
    finally:
        for contender in forms.values():
            contender.close()
    return 0


def table(forms: dict[str, Form]) -> list[str]:
    """Markdown. Rates with their ratio to float32's."""
    base = forms[FLOAT32]
    rates = " | ".join(f"{size} at once, tok/s" for size in BATCHES)
    alike = f"replies alike up to {', '.join(map(str, LENGTHS))} tokens"
    rows = [f"| weights | {rates} | resident, MB | {alike} |", "|---" * (len(BATCHES) + 3) + "|"]
    for name, form in forms.items():
        found = []
        for size in BATCHES:
            mine, right = statistics.median(form.rates[size]), statistics.median(base.rates[size])
            found.append(f"{mine:.1f} ({mine / right:.2f}x)")
        lengths = alike_up_to(base.replies, form.replies)
        told = ", ".join(str(sum(length >= wanted for length in lengths)) for wanted in LENGTHS)
        rows.append(f"| {name} | {' | '.join(found)} | {form.resident_mb()} | {told} of {len(lengths)} |")
    return rows


def alike_up_to(right: list[list[int]], found: list[list[int]]) -> list[int]:
    """Of each reply, the tokens before the first that differs."""
    return [next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
            for one, other in zip(right, found)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
