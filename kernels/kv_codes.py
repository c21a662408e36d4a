"""K and V in 8 bits: from numbers to the codes of a cache, and back in registers. Contract: reference/kv_codes.py.

Two tokens that follow each other lie side by side in such a cache, number by number, so that kernels load both as one
word of 16 bits: words of that size are transposed on their way from shared memory to the matrix units, bytes are not.
Every number is exact in float16, and so is a query of 16 bits, unless it is larger than any that float16 has.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from quire.kernels import launch

_KINDS = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}
_MOST_OF_FLOAT16 = tl.constexpr(65504.0)

# Words of two places (1) -> the numbers of their even, or odd, tokens. First where there is an instruction for it; the
# compiler carries out once what both begin with.
_E4M3_EVEN = tl.constexpr("""{
.reg .b16 codes;
.reg .b32 t;
prmt.b32 t, $1, $1, 0x3120;
mov.b32 {codes, _}, t;
cvt.rn.f16x2.e4m3x2 $0, codes;
}""")
_E4M3_ODD = tl.constexpr("""{
.reg .b16 codes;
.reg .b32 t;
prmt.b32 t, $1, $1, 0x3120;
mov.b32 {_, codes}, t;
cvt.rn.f16x2.e4m3x2 $0, codes;
}""")
# Sign, exponent and mantissa go where float16 has them, and a factor makes up for its other bias.
_E4M3_EVEN_BY_BITS = tl.constexpr("""{
.reg .b32 t, u, factor, nothing;
mov.b32 factor, 0x5C005C00;
mov.b32 nothing, 0;
prmt.b32 t, $1, nothing, 0x2404;
shr.u32 u, t, 1;
and.b32 u, u, 0x3F803F80;
lop3.b32 t, t, 0x80008000, u, 0xEA;
mul.rn.f16x2 $0, t, factor;
}""")
_E4M3_ODD_BY_BITS = tl.constexpr("""{
.reg .b32 t, u, factor;
mov.b32 factor, 0x5C005C00;
shr.u32 u, $1, 1;
and.b32 u, u, 0x3F803F80;
lop3.b32 t, $1, 0x80008000, u, 0xEA;
mul.rn.f16x2 $0, t, factor;
}""")
# The upper half of a float16.
_E5M2_EVEN = tl.constexpr("""{
.reg .b32 nothing;
mov.b32 nothing, 0;
prmt.b32 $0, $1, nothing, 0x2404;
}""")
_E5M2_ODD = tl.constexpr("and.b32 $0, $1, 0xFF00FF00;")


class Codes(NamedTuple):
    """How a cache's numbers are stored and read, as compile-time constants of kernels."""

    kind: str  # "e4m3" or "e5m2"; "": as numbers of 16 or 32 bits
    how: str  # "instruction", "bits" (assembly too) or "plain"


PLAIN = Codes("", "plain")


def codes_of(cache: torch.Tensor) -> Codes:
    """Of a cache on a GPU, or in the interpreter."""
    kind = _KINDS.get(cache.dtype)
    return PLAIN if kind is None else Codes(kind, launch.code_reader(cache.device))


def words_of(cache: torch.Tensor) -> torch.Tensor:
    """What kernels are given of a cache: codes as words of two tokens."""
    return cache.view(torch.int16) if cache.dtype in _KINDS else cache


@triton.jit
def encoded(x, KIND: tl.constexpr):
    """float32 -> uint8, the nearest code, of two the even one; the largest where x is too large, or NaN."""
    tl.static_assert(KIND == "e4m3" or KIND == "e5m2")
    MANTISSA: tl.constexpr = 3 if KIND == "e4m3" else 2
    BIAS: tl.constexpr = 7 if KIND == "e4m3" else 15
    MOST: tl.constexpr = 448.0 if KIND == "e4m3" else 57344.0
    # Added to a number that is smaller than all normal ones, it leaves a multiple of the smallest in the last bits.
    ROUNDER: tl.constexpr = 16384.0 if KIND == "e4m3" else 128.0
    CUT: tl.constexpr = 23 - MANTISSA
    SMALLEST_NORMAL: tl.constexpr = 2.0 ** (1 - BIAS)
    bits = x.to(tl.int32, bitcast=True)
    size = (bits & 0x7FFFFFFF).to(tl.float32, bitcast=True)
    size = tl.where(size < MOST, size, MOST)  # NaN is not less
    own = size.to(tl.int32, bitcast=True)
    normal = ((own + ((1 << (CUT - 1)) - 1) + ((own >> CUT) & 1)) >> CUT) - ((127 - BIAS) << MANTISSA)
    small = (size + ROUNDER).to(tl.int32, bitcast=True) & 15
    sign = tl.where(x == x, (bits >> 24) & 128, 0)  # NaN has none
    return (tl.where(size < SMALLEST_NORMAL, small, normal) | sign).to(tl.uint8)


@triton.jit
def decoded(code, KIND: tl.constexpr):
    """uint8 -> float16."""
    code = code.to(tl.int32)
    if KIND == "e4m3":
        bits = ((code & 127) << 7) | ((code & 128) << 8)
        number = bits.to(tl.uint16).to(tl.float16, bitcast=True) * 256.0
    else:
        number = (code << 8).to(tl.uint16).to(tl.float16, bitcast=True)
    return number.to(tl.float16)


@triton.jit
def numbers(words, ODD: tl.constexpr, KIND: tl.constexpr, HOW: tl.constexpr):
    """int16, each of two tokens -> float16, those of the even token or of the odd one."""
    if HOW == "plain":
        code = words.to(tl.int32)
        return decoded((code >> 8) & 255 if ODD else code & 255, KIND)
    elif KIND == "e5m2":
        return _two_at_a_time(words, _E5M2_ODD if ODD else _E5M2_EVEN)
    elif HOW == "bits":
        return _two_at_a_time(words, _E4M3_ODD_BY_BITS if ODD else _E4M3_EVEN_BY_BITS)
    else:
        return _two_at_a_time(words, _E4M3_ODD if ODD else _E4M3_EVEN)


@triton.jit
def _two_at_a_time(words, assembly: tl.constexpr):
    return tl.inline_asm_elementwise(assembly, "=r,r", [words], tl.float16, is_pure=True, pack=2)


@triton.jit
def beside_codes(queries):
    """Queries in the type that numbers are read in."""
    wide = queries.to(tl.float32)
    return tl.minimum(tl.maximum(wide, -_MOST_OF_FLOAT16), _MOST_OF_FLOAT16).to(tl.float16)


@triton.jit
def store_codes(cache, block_and_head, offset, dims, x, factor, inside, KIND: tl.constexpr, BLOCK_SIZE: tl.constexpr,
                HEAD_DIM: tl.constexpr):
    """Writes the codes of x * factor to one token's place of a cache of words, at dims where inside; returns them."""
    code = encoded(x.to(tl.float32) * factor, KIND)
    row = block_and_head * (BLOCK_SIZE // 2) + offset // 2
    place = (row * HEAD_DIM + dims) * 2 + offset % 2
    tl.store(cache.to(tl.pointer_type(tl.uint8), bitcast=True) + place, code, mask=inside)
    return code
