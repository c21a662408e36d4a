"""What is asked of a simulated server: a file of arrivals, or a workload at a rate.

A line of the file is a JSON object: {"arrival_s": 0.5, "prompt_tokens": 900, "output_tokens": 200}, and where it is so
"prefix" and "prefix_tokens": prompts that name the same prefix begin with the same tokens, as many as both say.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec

from quire.engine.errors import ConfigError
from quire.loadtest import workloads


class Arrival(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefix: str = ""
    prefix_tokens: int = 0
    priority: int = 0
    key: str = ""  # whose request it is: keys share an engine fairly

    def problem(self) -> str:
        if not 0 <= self.arrival_s < float("inf"):
            return f"arrival_s is {self.arrival_s}; it must be a time of 0 or later"
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            return (f"prompt_tokens is {self.prompt_tokens} and output_tokens {self.output_tokens}; each must be at "
                    "least 1")
        if not 0 <= self.prefix_tokens <= self.prompt_tokens:
            return f"prefix_tokens is {self.prefix_tokens}; it must be from 0 to prompt_tokens, {self.prompt_tokens}"
        return ""


def read(path: str) -> list[Arrival]:
    """In order of time. Raises ConfigError that names the line."""
    decoder = msgspec.json.Decoder(Arrival)
    arrivals = []
    try:
        for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
            if not line.strip():
                continue
            try:
                arrival = decoder.decode(line)
                problem = arrival.problem()
            except msgspec.DecodeError as error:
                problem = str(error)
            if problem:
                raise ConfigError(f"--trace: {path}, line {number}: {problem}")
            arrivals.append(arrival)
    except OSError as error:
        raise ConfigError(f"--trace: {path} cannot be read: {error.strerror}") from error
    if not arrivals:
        raise ConfigError(f"--trace: {path} has no request in it")
    return sorted(arrivals, key=lambda arrival: arrival.arrival_s)


def poisson(name: str, rate: float, count: int, seed: int = 0) -> Iterator[Arrival]:
    """`count` requests with the lengths of a workload, over and over, `rate` a second on average and at random."""
    workload = workloads.load()[name]
    lengths, prefix = workload["requests"], workload.get("shared_prefix", 0)
    rng = random.Random(seed)
    now = 0.0
    for number in range(count):
        now += rng.expovariate(rate)
        num_prompt, num_output = lengths[number % len(lengths)]
        yield Arrival(now, num_prompt, num_output, name if prefix else "", prefix)
