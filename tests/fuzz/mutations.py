"""Inputs made of valid ones by chance, the same ones for the same seed: what runs where there is no fuzzer."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

# Numbers at the ends of what their bytes hold, and what nests in JSON, YAML, msgpack and pickles.
_WORDS = (b"\xff" * 8, b"\xff" * 4, b"\x7f" + b"\xff" * 7, bytes(8), b"-1", b"1e999", b"9" * 25, b"[" * 200,
          b'{"a":' * 50, b"\xc3", b"\\ud800", b"null", b"true", b'""', b"\x91" * 50, b"&a [*a]",
          b"0x" + b"f" * 5000, b")\x85\x85")
_MOST_EDITS = 4


def mutated(seeds: Sequence[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` inputs, each a seed with one to four edits: bytes changed, taken out, doubled, or put in between."""
    chance = random.Random(seed)
    for _ in range(count):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, _MOST_EDITS)):
            _edit(data, chance, seeds)
        yield bytes(data)


def _edit(data: bytearray, chance: random.Random, seeds: Sequence[bytes]) -> None:
    place = chance.randint(0, len(data))
    end = min(len(data), place + chance.randint(1, 16))
    match chance.randrange(6):
        case 0:
            data[place:end] = chance.randbytes(end - place)
        case 1:
            del data[place:end]
        case 2:
            data[place:place] = data[place:end]
        case 3:
            data[place:place] = chance.choice(_WORDS)
        case 4:
            word = chance.choice(_WORDS)
            data[place:place + len(word)] = word
        case _:
            other = chance.choice(seeds)
            start = chance.randint(0, len(other))
            data[place:end] = other[start:start + chance.randint(1, 32)]
