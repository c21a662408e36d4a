"""From the words of a packed weight to the numbers that its codes stand for, in registers. See packed_weight.py.

Each number is exact in every type of 16 bits or more. Of some kinds there is assembly that makes two numbers at a time,
where the plain form's conversions would take longer than reading the codes. Called by the kernels that read packed
weights.
"""

import triton
import triton.language as tl

_OPERANDS = tl.constexpr("=r,r,r,r,r,r,r")
# Two words (1, 2), bytes chosen of both (3), places to the right (5) -> two numbers. A code lands in the low bits of a
# mantissa, the exponent above it is put there, and what they make too large is taken off.
_INT4_BFLOAT16 = tl.constexpr("""{
.reg .b32 t, one, less;
mov.b32 one, 0x3F803F80;
mov.b32 less, 0xC308C308;
prmt.b32 t, $1, $2, $3;
shr.u32 t, t, $5;
lop3.b32 t, t, 0x000F000F, 0x43004300, 0xEA;
fma.rn.bf16x2 $0, t, one, less;
}""")
_INT4_FLOAT16 = tl.constexpr("""{
.reg .b32 t, less;
mov.b32 less, 0x64086408;
prmt.b32 t, $1, $2, $3;
shr.u32 t, t, $5;
lop3.b32 t, t, 0x000F000F, 0x64006400, 0xEA;
sub.rn.f16x2 $0, t, less;
}""")
# As above; sign, exponent and mantissa go where the wider type has them, and a factor makes up for its other bias.
_E4M3_BFLOAT16 = tl.constexpr("""{
.reg .b32 t, u, factor, nothing;
mov.b32 factor, 0x7B807B80;
mov.b32 nothing, 0x80008000;
prmt.b32 t, $1, $2, $3;
shr.u32 u, t, $5;
and.b32 u, u, 0x07F007F0;
lop3.b32 t, t, 0x80008000, u, 0xEA;
fma.rn.bf16x2 $0, t, factor, nothing;
}""")
_E4M3_FLOAT16 = tl.constexpr("""{
.reg .b32 t, u, factor;
mov.b32 factor, 0x5C005C00;
prmt.b32 t, $1, $2, $3;
shr.u32 u, t, $5;
and.b32 u, u, 0x3F803F80;
lop3.b32 t, t, 0x80008000, u, 0xEA;
mul.rn.f16x2 $0, t, factor;
}""")
_E2M1_BFLOAT16 = tl.constexpr("""{
.reg .b32 t, u, factor, nothing;
mov.b32 factor, 0x7E807E80;
mov.b32 nothing, 0x80008000;
prmt.b32 t, $1, $2, $3;
shr.u32 t, t, $5;
shl.b32 u, t, 6;
and.b32 u, u, 0x01C001C0;
shl.b32 t, t, 12;
lop3.b32 t, t, 0x80008000, u, 0xEA;
fma.rn.bf16x2 $0, t, factor, nothing;
}""")
_E2M1_FLOAT16 = tl.constexpr("""{
.reg .b32 t, u, factor;
mov.b32 factor, 0x74007400;
prmt.b32 t, $1, $2, $3;
shr.u32 t, t, $5;
shl.b32 u, t, 9;
and.b32 u, u, 0x0E000E00;
shl.b32 t, t, 12;
lop3.b32 t, t, 0x80008000, u, 0xEA;
mul.rn.f16x2 $0, t, factor;
}""")


@triton.jit
def values(words, table, PLACE: tl.constexpr, KIND: tl.constexpr, dtype: tl.constexpr, FAST: tl.constexpr):
    """Those at one place of each int32 word. `table`: float32 [16] of `nf4`. `FAST`: there is assembly."""
    if FAST and KIND == "int4" and dtype == tl.bfloat16:
        return _two_at_a_time(words, _INT4_BFLOAT16, _halves(PLACE), PLACE % 4 * 4, dtype)
    elif FAST and KIND == "int4" and dtype == tl.float16:
        return _two_at_a_time(words, _INT4_FLOAT16, _halves(PLACE), PLACE % 4 * 4, dtype)
    elif FAST and KIND == "e2m1" and dtype == tl.bfloat16:
        return _two_at_a_time(words, _E2M1_BFLOAT16, _halves(PLACE), PLACE % 4 * 4, dtype)
    elif FAST and KIND == "e2m1" and dtype == tl.float16:
        return _two_at_a_time(words, _E2M1_FLOAT16, _halves(PLACE), PLACE % 4 * 4, dtype)
    elif FAST and KIND == "e4m3" and dtype == tl.bfloat16:
        return _two_at_a_time(words, _E4M3_BFLOAT16, PLACE * 0x1111 + 0x4400, 4, dtype)
    elif FAST and KIND == "e4m3" and dtype == tl.float16:
        return _two_at_a_time(words, _E4M3_FLOAT16, PLACE * 0x1111 + 0x4400, 1, dtype)
    elif KIND == "int4":
        return (((words >> (4 * PLACE)) & 15) - 8).to(tl.float32).to(dtype)
    elif KIND == "int8":
        return ((words << (24 - 8 * PLACE)) >> 24).to(tl.float32).to(dtype)
    elif KIND == "e2m1":
        # Exponent and mantissa at the place where float16 has them; its bias is 14 more.
        code = words >> (4 * PLACE)
        bits = ((code & 7) << 9) | ((code & 8) << 12)
        return (bits.to(tl.uint16).to(tl.float16, bitcast=True) * 16384.0).to(dtype)
    elif KIND == "e4m3":
        # As above: the bias is 8 more.
        code = words >> (8 * PLACE)
        bits = ((code & 127) << 7) | ((code & 128) << 8)
        return (bits.to(tl.uint16).to(tl.float16, bitcast=True) * 256.0).to(dtype)
    else:
        tl.static_assert(KIND == "nf4")
        return tl.load(table + ((words >> (4 * PLACE)) & 15)).to(dtype)


@triton.jit
def _halves(PLACE: tl.constexpr):
    """The lower halves of both words, or the upper ones."""
    return 0x5410 if PLACE < 4 else 0x7632


@triton.jit
def _two_at_a_time(words, assembly: tl.constexpr, chosen, shift, dtype: tl.constexpr):
    # The type as a name of Triton's: a constexpr is not taken there.
    if dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(assembly, _OPERANDS, [words, chosen, shift], tl.bfloat16, is_pure=True, pack=2)
    else:
        return tl.inline_asm_elementwise(assembly, _OPERANDS, [words, chosen, shift], tl.float16, is_pure=True, pack=2)
