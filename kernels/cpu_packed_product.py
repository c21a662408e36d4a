"""Products on a CPU with weights in 4 or 8 bits, by cpu_packed_product.c, which is compiled when it is first asked for:
what a processor can do is known only where it runs. Called by quire.engine.quantization.cpu_packed_product.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
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
_OPTIONS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long


@dataclass(frozen=True, slots=True)
class LaidOut:
    """A matrix as the source reads it. w = code * scale + offset, codes of 4 bits from 0 on, of 8 bits signed."""

    codes: torch.Tensor  # uint8 [tiles, size * bits / 8, TILE]
    scales: torch.Tensor  # float32 [tiles, groups, TILE]
    offsets: torch.Tensor  # the same
    outputs: int
    size: int  # filled up to a multiple of STEP
    group: int
    bits: int
    arguments: tuple[int, ...] = field(init=False)  # all of these, as the source takes them

    def __post_init__(self) -> None:
        assert self.size % STEP == 0 and self.group % STEP == 0
        places = [tensor.data_ptr() for tensor in (self.codes, self.scales, self.offsets)]
        object.__setattr__(self, "arguments", (*places, self.outputs, self.size, self.group, self.bits))


def lay_out(weight: PackedWeight) -> LaidOut | None:
    """None where the source cannot read it: small floats, and groups that are no multiple of STEP."""
    size = weight.size + -weight.size % STEP
    group = size if weight.group >= weight.size else weight.group
    if weight.kind not in ("int4", "int8") or group % STEP:
        return None
    bits = BITS[weight.kind]
    codes = F.pad(unpacked_codes(weight), (0, size - weight.size, 0, -weight.outputs % TILE))
    if bits == 4:
        codes = codes[:, 0::2] | codes[:, 1::2] << 4
    scales = weight.scales.float()
    if weight.outer is not None:
        scales = scales * weight.outer
    zeros = 8.0 if weight.kind == "int4" else 0.0
    offsets = scales * -(zeros if weight.zeros is None else weight.zeros.float() + zeros)
    return LaidOut(codes.view(-1, TILE, codes.shape[1]).transpose(1, 2).contiguous(), _in_tiles(scales),
                   _in_tiles(offsets), weight.outputs, size, group, bits)


def _in_tiles(numbers: torch.Tensor) -> torch.Tensor:
    """[groups, outputs] -> [tiles, groups, TILE]."""
    filled = F.pad(numbers, (0, -numbers.shape[1] % TILE))
    return filled.view(len(numbers), -1, TILE).transpose(0, 1).contiguous()


def packed_product(x: torch.Tensor, weight: LaidOut) -> torch.Tensor:
    """[n, in] -> float32 [n, out]. What a row becomes depends on how many there are by the order of its sums alone.

    Raises OSError where it cannot be compiled.
    """
    rows = x.shape[0]
    if x.shape[1] < weight.size:
        x = F.pad(x, (0, weight.size - x.shape[1]))
    x = x.float().contiguous()
    out = torch.empty(rows, weight.outputs)
    done = library()(x.data_ptr(), rows, *weight.arguments, out.data_ptr(), torch.get_num_threads())
    if not done:
        raise MemoryError("no memory for a copy of a product's inputs")
    return out


@cache
def library() -> Any:
    """The compiled function. Raises OSError where there is no compiler, or it does not compile."""
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), *COMPILERS)))), None)
    if compiler is None:
        raise OSError(f"no C compiler here ({', '.join(COMPILERS)}, or one that CC names)")
    with tempfile.TemporaryDirectory(prefix="quire-") as folder:
        library = f"{folder}/product.so"
        try:
            subprocess.run([compiler, *_OPTIONS, "-o", library, str(SOURCE)], check=True, capture_output=True,
                           text=True, timeout=COMPILE_S)
        except subprocess.SubprocessError as error:
            said = getattr(error, "stderr", None) or str(error)
            raise OSError(f"{compiler} does not compile {SOURCE.name}: {said.strip().splitlines()[0]}") from error
        function = ctypes.CDLL(library).packed_product  # stays loaded when the file is gone
    function.argtypes = [_POINTER, _LONG, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG, ctypes.c_int, _POINTER,
                         ctypes.c_int]
    return function
