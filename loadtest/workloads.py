"""The workloads every engine is measured on: request lengths from workloads.json, prompts drawn from their seed.

Prompts are random token ids, so any engine, vocabulary and weights can run the same work. `python -m
quire.loadtest.workloads` writes workloads.json anew; its figures are comparable only as long as the file stays as it
is. `sharegpt` follows the totals of ShareGPT conversations (1000 requests, about 215k prompt and 198k output tokens).
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from quire.engine.errors import ConfigError

FILE = Path(__file__).with_name("workloads.json")
MODELS = Path(__file__).with_name("models")
# Token ids are drawn from here, clear of special tokens at either end.
LOWEST_ID, HIGHEST_ID = 1000, 30000


def load() -> dict[str, Any]:
    """All workloads: {name: {"seed", "requests": [[prompt tokens, output tokens], ...], "shared_prefix"?}}."""
    workloads: dict[str, Any] = json.loads(FILE.read_text())
    return workloads


def prompts(name: str, vocab_size: int, num_requests: int | None = None) -> tuple[list[list[int]], list[int]]:
    """Prompt token ids and output lengths of workload `name`, in request order."""
    workload = load()[name]
    rng = random.Random(workload["seed"])
    top = top_id(vocab_size)
    prefix = [rng.randrange(LOWEST_ID, top) for _ in range(workload.get("shared_prefix", 0))]
    ids, output_lens = [], []
    for prompt_len, output_len in workload["requests"][:num_requests]:
        ids.append(prefix + [rng.randrange(LOWEST_ID, top) for _ in range(prompt_len - len(prefix))])
        output_lens.append(output_len)
    return ids, output_lens


def top_id(vocab_size: int) -> int:
    """One more than the last token id to draw. Raises ConfigError where there is none."""
    if vocab_size <= LOWEST_ID:
        raise ConfigError(f"a vocabulary of {vocab_size} tokens is too small: ids from {LOWEST_ID} on are drawn")
    return min(vocab_size, HIGHEST_ID)


def _lognormal(rng: random.Random, mean: float, sigma: float) -> int:
    value = rng.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)
    return max(4, min(1024, round(value)))


def generate() -> dict[str, Any]:
    rng = random.Random(0)
    sharegpt = [[_lognormal(rng, 255, 1.25), _lognormal(rng, 212, 0.95)] for _ in range(1000)]
    return {
        "sharegpt": {"seed": 0, "requests": sharegpt},
        "prefill": {"seed": 1, "requests": [[2048, 16]] * 128},
        "decode": {"seed": 2, "requests": [[128, 512]] * 256},
        "single": {"seed": 3, "requests": [[128, 256]]},
        **{f"batch{size}": {"seed": 4 + size, "requests": [[512, 128]] * size} for size in (4, 16, 64)},
        "prefix": {"seed": 4, "shared_prefix": 2048, "requests": [[2048 + 64, 64]] * 256},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(generate(), separators=(",", ":")) + "\n")
