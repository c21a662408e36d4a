"""From the codes of a packed weight to the numbers that they stand for, in registers. See packed_weight.py.

Each number is exact in every type of 16 bits or more. Called by the kernels that read packed weights.
"""

import triton
import triton.language as tl


@triton.jit
def values(codes, table, KIND: tl.constexpr, dtype: tl.constexpr):
    """uint8 codes of any shape, those of 4 bits one to a byte. `table`: float32 [16] of `nf4`."""
    if KIND == "int4":
        return (codes.to(tl.float32) - 8.0).to(dtype)
    elif KIND == "int8":
        return codes.to(tl.int8, bitcast=True).to(tl.float32).to(dtype)
    elif KIND == "e2m1":
        # Exponent and mantissa at the place where float16 has them; its bias is 14 more.
        bits = ((codes & 7).to(tl.uint16) << 9) | ((codes & 8).to(tl.uint16) << 12)
        return (bits.to(tl.float16, bitcast=True) * 16384.0).to(dtype)
    elif KIND == "e4m3":
        # As above: the bias is 8 more.
        bits = ((codes & 127).to(tl.uint16) << 7) | ((codes & 128).to(tl.uint16) << 8)
        return (bits.to(tl.float16, bitcast=True) * 256.0).to(dtype)
    else:
        tl.static_assert(KIND == "nf4")
        return tl.load(table + codes.to(tl.int32)).to(dtype)
