"""Products on a CPU with weights in 4 or 8 bits, by cpu_packed_product.c, which is compiled when it is first asked for:
what a processor can do is known only where it runs. Called by quire.engine.quantization.cpu_packed_product.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from quire.kernels.packed_weight import BITS, PackedWeight, unpacked_codes

SOURCE = Path(__file__).with_suffix(".c")
TILE, STEP = 16, 4  # as the source has them
COMPILERS = ("cc", "gcc", "clang")
COMPILE_S = 60
_BAND = 64  # tiles that are laid out at a time: a byte for each code, and more, is needed meanwhile
_ROUNDING = 2.0 ** -19  # of an offset, in steps of a code; zeros may be 32 of them
_OPTIONS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long


@dataclass(frozen=True, slots=True)
class LaidOut:
    """A matrix as the source reads it. w = code * scale + offset, codes of 4 bits from 0 on, of 8 bits signed."""

    codes: torch.Tensor  # uint8 [tiles, size * bits / 8, TILE]
    scales: torch.Tensor  # [tiles, groups, TILE], float16 where that has all of them and all offsets, else float32
    offsets: torch.Tensor  # the same
    outputs: int
    size: int  # filled up to a multiple of STEP
    group: int
    bits: int

    def __post_init__(self) -> None:
        assert self.size % STEP == 0 and self.group % STEP == 0
        assert self.scales.dtype == self.offsets.dtype

    def rows(self, numbers: torch.Tensor) -> torch.Tensor:
        """Those outputs' weights: int64 [n] -> float32 [n, size]. For few of them."""
        tile, place = numbers // TILE, numbers % TILE
        codes = self.codes[tile, :, place]
        if self.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), 2).flatten(1)
        else:
            codes = codes.view(torch.int8)
        # Of the groups that there are, all but the last are whole.
        scales, offsets = (of_groups[tile, :, place].float().repeat_interleave(self.group, 1)[:, :self.size]
                           for of_groups in (self.scales, self.offsets))
        return codes * scales + offsets


def reads(weight: PackedWeight) -> bool:
    """Whether the source can: no small floats, no tables, and groups that are a multiple of STEP."""
    return weight.kind in ("int4", "int8") and (weight.group >= weight.size or weight.group % STEP == 0)


def lay_out(weight: PackedWeight) -> LaidOut:
    """What `reads` allows."""
    size = weight.size + -weight.size % STEP
    group = size if weight.group >= weight.size else weight.group
    bits, num_tiles = BITS[weight.kind], -(-weight.outputs // TILE)
    codes = torch.empty(num_tiles, size * bits // 8, TILE, dtype=torch.uint8)
    for first in range(0, num_tiles, _BAND):
        tiles = codes[first:first + _BAND]
        part = unpacked_codes(weight.rows(slice(first * TILE, min((first + _BAND) * TILE, weight.outputs))))
        part = F.pad(part, (0, size - weight.size, 0, -len(part) % TILE))
        if bits == 4:
            part = part[:, 0::2] | part[:, 1::2] << 4
        tiles.copy_(part.view(len(tiles), TILE, -1).transpose(1, 2))
    scales = weight.scales.float()
    if weight.outer is not None:
        scales = scales * weight.outer
    zeros = 8.0 if weight.kind == "int4" else 0.0
    offsets = scales * -(zeros if weight.zeros is None else weight.zeros.float() + zeros)
    # A format's offsets in 16 bits have become zeros, and come back with the roundings of that.
    off = (offsets.half() - offsets).abs()
    if torch.equal(scales.half().float(), scales) and bool((off <= scales.abs() * _ROUNDING).all()):
        scales, offsets = scales.half(), offsets.half()
    return LaidOut(codes, _in_tiles(scales), _in_tiles(offsets), weight.outputs, size, group, bits)


def _in_tiles(numbers: torch.Tensor) -> torch.Tensor:
    """[groups, outputs] -> [tiles, groups, TILE]."""
    filled = F.pad(numbers, (0, -numbers.shape[1] % TILE))
    return filled.view(len(numbers), -1, TILE).transpose(0, 1).contiguous()


def packed_product(x: torch.Tensor, weight: LaidOut) -> torch.Tensor:
    """[n, in] -> float32 [n, out]. What a row becomes depends on how many there are by the order of its sums alone.

    Raises OSError where it cannot be compiled.
    """
    rows, inputs = x.shape
    assert weight.size - STEP < inputs <= weight.size, (inputs, weight.size)
    if inputs < weight.size:
        x = F.pad(x, (0, weight.size - inputs))
    x = x.float().contiguous()
    out = torch.empty(rows, weight.outputs, dtype=torch.float32, device="cpu")
    done = library()(x.data_ptr(), rows, weight.codes.data_ptr(), weight.scales.data_ptr(), weight.offsets.data_ptr(),
                     weight.scales.element_size(), weight.outputs, weight.size, weight.group, weight.bits,
                     out.data_ptr(), torch.get_num_threads())
    if not done:
        raise MemoryError("no memory for a copy of a product's inputs")
    return out


@cache
def library() -> Any:
    """The compiled function. Raises OSError where there is no compiler, or it does not compile."""
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), *COMPILERS)))), None)
    if compiler is None:
        raise OSError(f"no C compiler here ({', '.join(COMPILERS)}, or one that CC names)")
    with tempfile.TemporaryDirectory(prefix="packed-product-") as folder:
        library = f"{folder}/product.so"
        try:
            subprocess.run([compiler, *_OPTIONS, "-o", library, str(SOURCE)], check=True, capture_output=True,
                           timeout=COMPILE_S)
            function = ctypes.CDLL(library).packed_product  # stays loaded when the file is gone
        except (subprocess.SubprocessError, AttributeError) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip() or str(error)
            raise OSError(f"{compiler} does not compile {SOURCE.name}: {said.splitlines()[0]}") from error
    function.argtypes = [_POINTER, _LONG, _POINTER, _POINTER, _POINTER, ctypes.c_int, _LONG, _LONG, _LONG, ctypes.c_int,
                         _POINTER, ctypes.c_int]
    return function
