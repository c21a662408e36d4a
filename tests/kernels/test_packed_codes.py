"""The assembly that makes numbers of codes, instruction by instruction: Triton's interpreter runs none."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from quire.kernels.bench.cases import E4M3
from quire.kernels.packed_weight import BITS, TABLES

triton = pytest.importorskip("triton")
MASK = 0xFFFFFFFF


def bfloat16(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits << 16))[0])


def float16(bits: int) -> float:
    return float(np.uint16(bits).view(np.float16))


def permuted(a: int, b: int, chosen: int) -> int:
    source = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")]
    return int.from_bytes(bytes(source[chosen >> (4 * i) & 7] for i in range(4)), "little")


INSTRUCTIONS = {
    "mov.b32": lambda a: a, "prmt.b32": permuted, "shr.u32": lambda a, n: a >> n, "shl.b32": lambda a, n: a << n & MASK,
    "and.b32": lambda a, b: a & b, "lop3.b32": lambda a, b, c, table: (a & b | c) if table == 0xEA else None}
ARITHMETIC = {  # of each half, in float64: results are exact
    "fma.rn.bf16x2": (bfloat16, lambda a, b, c: a * b + c), "sub.rn.f16x2": (float16, lambda a, b: a - b),
    "mul.rn.f16x2": (float16, lambda a, b: a * b)}


def carried_out(assembly: str, *operands: int) -> list[float]:
    """What it writes to $0, as the two numbers that it is."""
    registers: dict[str, int] = {f"${place}": value for place, value in enumerate(operands, 1)}
    for line in assembly.strip("{}\n").split(";")[1:]:  # behind the registers' declaration
        if not line.strip():
            continue
        name, _, rest = line.strip().partition(" ")
        target, *sources = (word.strip() for word in rest.split(","))
        values = [registers[word] if word in registers else int(word, 0) for word in sources]
        if name in ARITHMETIC:
            number, combine = ARITHMETIC[name]
            assert target == "$0"
            return [combine(*(number(value >> shift & 0xFFFF) for value in values)) for shift in (0, 16)]
        registers[target] = INSTRUCTIONS[name](*values)
    raise AssertionError("it writes no result")


@pytest.mark.parametrize("kind", ["int4", "e2m1", "e4m3"])
@pytest.mark.parametrize("dtype", ["BFLOAT16", "FLOAT16"])
def test_each_place_of_two_words_becomes_its_two_numbers(kind: str, dtype: str) -> None:
    from quire.kernels import packed_codes

    assembly = getattr(packed_codes, f"_{kind.upper()}_{dtype}").value
    bits = BITS[kind]
    values = TABLES[kind] if bits == 4 else (*E4M3[:127], None, *E4M3[127:], None)
    drawn = random.Random(0)
    for _ in range(64):
        words = drawn.getrandbits(32), drawn.getrandbits(32)
        for place in range(32 // bits):
            chosen = place * 0x1111 + 0x4400 if bits == 8 else 0x5410 if place < 4 else 0x7632
            shift = place % 4 * 4 if bits == 4 else 4 if dtype == "BFLOAT16" else 1
            right = [values[word >> (bits * place) & (2 ** bits - 1)] for word in words]
            if None not in right:
                # The operands are the kernel's: both words, then each scalar twice.
                assert carried_out(assembly, *words, chosen, chosen, shift, shift) == right
