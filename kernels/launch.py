"""Launch parameters of every Triton kernel, by device family: kept here, never tuned at request time.

Knows numbers only. Called by the kernels' wrappers; a new device family is one more line in each table.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, replace
from functools import cache

import torch

# A product and the sum after it are one instruction. Triton does so by itself before 3.10, and warns of that in 3.9.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and columns of a program's tile, and how it is compiled."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class BalancedTile:
    """Of decode attention in equal shares: K/V tokens of a step, programs for each multiprocessor."""

    columns: int
    num_programs: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class ProductTile:
    """Of a product with few rows: outputs of a program, depth of a step, parts that the depth is cut into."""

    outputs: int
    depth: int
    num_splits: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class WideTile:
    """Of a product with many rows: a program's rows and outputs, depth of a step."""

    rows: int
    outputs: int
    depth: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class PackedTile:
    """Of a product with a packed weight: a program's rows and outputs, parts of the depth."""

    rows: int
    outputs: int
    num_splits: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class EightBitTile:
    """Of a product of two matrices of 8 bits: a program's rows, outputs and depth of a step, parts of the depth."""

    rows: int
    outputs: int
    depth: int
    num_splits: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class ExpertsTile:
    """Of products with experts: pairs of a token and an expert, outputs, depth of a step."""

    rows: int
    outputs: int
    depth: int
    num_warps: int
    num_stages: int


# family -> {(bytes of an element, widest padded head_dim that it is for): tile}, narrowest first. Of 1 byte an element,
# a step of so many columns reads half as many words.
_DECODE = {
    "hopper": {
        (2, 64): Tile(16, 128, 4, 3), (2, 128): Tile(16, 64, 4, 3), (2, 256): Tile(16, 32, 4, 3),
        (4, 64): Tile(16, 64, 4, 2), (4, 128): Tile(16, 32, 4, 2), (4, 256): Tile(16, 16, 4, 2),
        (2, 512): Tile(16, 32, 8, 2), (4, 512): Tile(16, 16, 8, 1),
        (1, 64): Tile(16, 128, 4, 3), (1, 128): Tile(16, 64, 4, 3), (1, 256): Tile(16, 32, 4, 3),
        (1, 512): Tile(16, 32, 8, 2),
    },
    "ampere": {
        (2, 64): Tile(16, 128, 4, 2), (2, 128): Tile(16, 64, 4, 2), (2, 256): Tile(16, 32, 4, 2),
        (4, 64): Tile(16, 64, 4, 2), (4, 128): Tile(16, 32, 4, 2), (4, 256): Tile(16, 16, 4, 2),
        (2, 512): Tile(16, 32, 8, 2), (4, 512): Tile(16, 16, 8, 1),
        (1, 64): Tile(16, 128, 4, 2), (1, 128): Tile(16, 64, 4, 2), (1, 256): Tile(16, 32, 4, 2),
        (1, 512): Tile(16, 32, 8, 2),
    },
    "default": {
        (2, 64): Tile(16, 64, 4, 1), (2, 128): Tile(16, 32, 4, 1), (2, 256): Tile(16, 16, 4, 1),
        (4, 64): Tile(16, 32, 4, 1), (4, 128): Tile(16, 16, 4, 1), (4, 256): Tile(16, 16, 4, 1),
        (2, 512): Tile(16, 16, 8, 1), (4, 512): Tile(16, 16, 8, 1),
        (1, 64): Tile(16, 64, 4, 1), (1, 128): Tile(16, 32, 4, 1), (1, 256): Tile(16, 32, 4, 1),
        (1, 512): Tile(16, 32, 8, 1),
    },
}
_PREFILL = {
    "hopper": {
        (2, 64): Tile(64, 64, 4, 2), (2, 128): Tile(64, 64, 4, 2), (2, 256): Tile(128, 64, 8, 2),
        (4, 64): Tile(64, 32, 8, 2), (4, 128): Tile(32, 32, 8, 2), (4, 256): Tile(16, 16, 4, 2),
        (2, 512): Tile(32, 32, 8, 2), (4, 512): Tile(16, 16, 8, 1),
        (1, 64): Tile(64, 64, 4, 2), (1, 128): Tile(64, 64, 4, 2), (1, 256): Tile(64, 64, 8, 2),
        (1, 512): Tile(32, 32, 8, 2),
    },
    "ampere": {
        (2, 64): Tile(128, 64, 8, 2), (2, 128): Tile(64, 64, 4, 2), (2, 256): Tile(64, 32, 8, 2),
        (4, 64): Tile(32, 32, 4, 2), (4, 128): Tile(32, 16, 4, 2), (4, 256): Tile(16, 16, 4, 1),
        (2, 512): Tile(32, 16, 8, 2), (4, 512): Tile(16, 16, 8, 1),
        (1, 64): Tile(128, 64, 8, 2), (1, 128): Tile(64, 64, 4, 2), (1, 256): Tile(64, 32, 8, 2),
        (1, 512): Tile(32, 32, 8, 2),
    },
    "default": {
        (2, 64): Tile(64, 32, 4, 1), (2, 128): Tile(32, 32, 4, 1), (2, 256): Tile(16, 16, 4, 1),
        (4, 64): Tile(16, 32, 4, 1), (4, 128): Tile(16, 16, 4, 1), (4, 256): Tile(16, 16, 4, 1),
        (2, 512): Tile(16, 16, 8, 1), (4, 512): Tile(16, 16, 8, 1),
        (1, 64): Tile(64, 32, 4, 1), (1, 128): Tile(32, 32, 4, 1), (1, 256): Tile(16, 32, 4, 1),
        (1, 512): Tile(16, 32, 8, 1),
    },
}

_is_batch_invariant = False

SKINNY_ROWS = 32  # most rows that kernels/product.py takes: with more, the library reads the weights as fast
PACKED_ROWS = 64  # most that kernels/packed_product.py takes: with more, floats for the library cost less
EIGHT_BIT_ROWS = 16  # from more rows on, inputs are rounded to 8 bits where the checkpoint is made for that
LIBRARY_EIGHT_BIT_ROWS = 256  # from more rows on, the library's product of two matrices of e4m3 is faster than ours
EIGHT_BIT_DEPTH = 128  # of a step of such products, which lies within a group
PACKED_SPLIT_DEPTH = 512  # of a program's part at least
PACKED_WARPS = 14  # wanted for each multiprocessor
SPLIT_MIN_TOKENS = 64  # of a decode's context
SHARED_SPLIT_MIN_TOKENS = 256  # of what many decodes begin with
MAX_SPLITS = 64
WAVES = 4  # programs wanted for each multiprocessor

# So many decodes, and so many of them times KV heads, are worth equal shares; fewer gain more by rotating for
# themselves.
BALANCED_MIN_SEQS = 16
BALANCED_MIN_PAIRS = 160
BALANCED_MIN_TILES = 2  # of a program's share

# So many decode programs rotate for themselves, which saves a kernel; more of them lose more by it.
FUSED_ROTARY_PROGRAMS = 1024

SUM_PROGRAMS = 132  # of a sum over ranks, at most: alike on each rank, whatever its GPU
SUM_BLOCK = 16384  # elements of such a program's stretch

ACTIVATION_BLOCK = 1024
NORMED_HEADS = 8  # of a program
COPY_BLOCK = 4096
PENALTY_BLOCK = 1024
MASK_BLOCK = 4096
SAMPLE_BLOCK = 4096  # vocabulary entries at a time, each of 8 warps' threads holding 16
THRESHOLD_BLOCK = 8192
SAMPLE_WARPS = 8
THRESHOLD_WARPS = 16


def set_batch_invariant(on: bool) -> None:
    """From now on, launches of this process sum up each row alike, whatever other rows there are, or how they like."""
    global _is_batch_invariant
    _is_batch_invariant = on


def is_batch_invariant() -> bool:
    return _is_batch_invariant


def family(device: torch.device) -> str:
    if device.type != "cuda":
        return "default"  # the interpreter
    return _family(device.index or 0)


@cache
def _family(index: int) -> str:
    major, _ = torch.cuda.get_device_capability(index)
    return {9: "hopper", 8: "ampere"}.get(major, "default")


@cache
def _num_multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def num_multiprocessors(device: torch.device) -> int:
    return _num_multiprocessors(device.index or 0) if device.type == "cuda" else 2


def decode_tile(device: torch.device, element_bytes: int, padded_head_dim: int, group: int) -> Tile:
    """`group`: query heads of a KV head."""
    tile = _pick(_DECODE[family(device)], element_bytes, padded_head_dim)
    if group > tile.rows:
        rows = 1 << (group - 1).bit_length()
        # Enough warps for scores and results to fit the registers. On Hopper four warps share 64 rows: with eight to so
        # few, Triton 3.1 does not compile.
        num_warps = 8 if rows > 64 or (rows == 64 and family(device) != "hopper") else tile.num_warps
        return replace(tile, rows=rows, num_warps=num_warps)
    if family(device) == "hopper" and element_bytes < 4 and padded_head_dim == 128 and group > 1:
        return Tile(16, 64, 2, 3) if element_bytes == 2 else Tile(16, 128, 2, 3)
    return tile


def balanced_tile(device: torch.device, element_bytes: int, head_dim: int, block_size: int, num_seqs: int,
                  num_kv_heads: int, group: int) -> BalancedTile | None:
    """None: a program for each sequence is better, or it is not measured."""
    if _is_batch_invariant:
        return None
    if device.type == "cpu":
        tile = BalancedTile(32, 2, 4, 1)  # the interpreter
    elif family(device) == "hopper" and element_bytes == 1 and head_dim <= 128 and group <= 16:
        tile = BalancedTile(128, 6 if head_dim <= 64 else 4, 2, 2)
    elif family(device) == "hopper" and element_bytes == 2 and head_dim <= 128 and group <= 16:
        tile = BalancedTile(64, 6 if head_dim <= 64 else 4, 2, 2)  # so many programs that they just fit
    else:
        return None
    if num_seqs < BALANCED_MIN_SEQS or num_seqs * num_kv_heads < BALANCED_MIN_PAIRS or tile.columns % block_size:
        return None
    return tile


def prefill_tile(device: torch.device, element_bytes: int, padded_head_dim: int) -> Tile:
    return _pick(_PREFILL[family(device)], element_bytes, padded_head_dim)


def whole_prefill_tile(device: torch.device, element_bytes: int, head_dim: int, max_query_len: int) -> Tile | None:
    """For prompts computed whole, by tensor descriptors. None: not there, or not faster."""
    if _is_batch_invariant:
        return None
    if device.type == "cpu":
        return Tile(16, 16, 4, 1)  # the interpreter
    if family(device) != "hopper" or element_bytes != 2 or head_dim not in (64, 128) or max_query_len < 1024:
        return None
    return Tile(128, 128, 8, 3) if head_dim == 128 else Tile(64, 64, 4, 3)


def _pick(tiles: dict[tuple[int, int], Tile], element_bytes: int, padded_head_dim: int) -> Tile:
    return next(tile for (size, width), tile in tiles.items() if size == element_bytes and width >= padded_head_dim)


def product_tile(device: torch.device, element_bytes: int, num_rows: int, num_outputs: int, size: int
                 ) -> ProductTile | None:
    """None: the library is faster, or not measured."""
    if device.type == "cpu":
        return ProductTile(16, 256, 1 if size <= 256 else 2, 4, 1)  # the interpreter
    if family(device) != "hopper" or element_bytes != 2:
        return None
    if num_rows > 16:
        if num_outputs >= 2048:
            return ProductTile(64, 128, 1 if num_outputs > 4096 else 2, 4, 4)
        return ProductTile(32, 128, 4, 4, 4) if size >= 2 * num_outputs else None
    # Few programs must each have much in flight; by kernels/bench/tune_products.py.
    if num_outputs >= 8192:
        return ProductTile(64, 128, 1, 4, 3)
    if num_outputs >= 2048:
        return ProductTile(64, 128, 1 if size < 2 * num_outputs else 2, 4, 6)
    return ProductTile(32, 128, 1, 4, 4) if size < 2 * num_outputs else ProductTile(64, 128, 4, 4, 6)


def gated_product_tile(device: torch.device, element_bytes: int, num_rows: int, num_outputs: int
                       ) -> ProductTile | None:
    """Outputs here are pairs of a gate's row and an up's."""
    if device.type == "cpu":
        return ProductTile(16, 256, 1, 4, 1)  # the interpreter
    if family(device) != "hopper" or element_bytes != 2:
        return None
    if num_rows > 16:
        return ProductTile(64, 64 if num_outputs >= 8192 else 128, 1, 4, 3)
    if num_outputs > 12288:
        return ProductTile(32, 128, 1, 2, 3)
    return ProductTile(64, 128, 1, 4, 3 if num_outputs >= 8192 else 4)


def wide_gated_tile(device: torch.device, element_bytes: int, num_rows: int, size: int) -> WideTile | None:
    """None: the library and a kernel for the activation are faster, as they are where the depth is large."""
    if device.type == "cpu":
        return WideTile(32, 16, 32, 4, 1)  # the interpreter
    if family(device) != "hopper" or element_bytes != 2 or num_rows < 2048 or size >= 2048:
        return None
    return WideTile(128, 128, 64, 8, 3 if num_rows > 4096 else 4)


def fixed_product_tile(device: torch.device, element_bytes: int, num_rows: int, num_outputs: int) -> WideTile:
    """Many programs where there are few outputs and rows. Checked on a GPU: its matrix units sum alike in all of them.
    """
    if device.type == "cpu":
        return WideTile(16, 16, 32, 4, 1)  # the interpreter
    if element_bytes == 4:
        return WideTile(32, 32, 32, 4, 2)
    outputs = 128 if num_outputs >= 16384 else 64 if num_outputs >= 8192 else 32
    if family(device) != "hopper":
        return WideTile(64, outputs, 64, 4, 3 if family(device) == "ampere" else 2)
    if num_rows > 512:
        return WideTile(128, 256, 64, 8, 3)
    return WideTile(64, outputs, 64, 4, 4) if outputs == 128 else WideTile(64, outputs, 128, 4, 5)


def packed_tile(device: torch.device, element_bytes: int, bits: int, num_rows: int, num_outputs: int, size: int
                ) -> PackedTile | None:
    """None: the weight is made floats for the library."""
    if device.type == "cpu":
        return PackedTile(16, 16, 1 if size <= 256 or _is_batch_invariant else 2, 4, 1)  # the interpreter
    if element_bytes == 4:
        return PackedTile(16, 32, 1, 4, 2) if num_rows <= 16 or _is_batch_invariant else None
    is_hopper = family(device) == "hopper"
    if _is_batch_invariant:
        return PackedTile(32, 32, 1, 4, 2 if has_assembly(device) else 1)
    if num_rows > (PACKED_ROWS if has_assembly(device) else SKINNY_ROWS):  # larger tiles do not fit Turing's registers
        return None
    if num_rows > 32:
        tile = PackedTile(64, 128, 1, 8, 2) if is_hopper else PackedTile(64, 64, 1, 4, 2)
        return _split(tile, device, num_outputs, size)
    rows = next(rows for rows in (8 if is_hopper and _has_descriptors() else 16, 16, 32) if num_rows <= rows)
    if bits == 8:
        tile = PackedTile(rows, 32, 1, 2, 3) if rows <= 16 else PackedTile(rows, 64, 1, 4, 3)
    else:
        tile = PackedTile(rows, 64, 1, 4, 3 if rows <= 8 else 2)
    if not is_hopper:
        tile = replace(tile, num_stages=2 if has_assembly(device) else 1)
    return _split(tile, device, num_outputs, size)


def _split(tile: PackedTile, device: torch.device, num_outputs: int, size: int) -> PackedTile:
    """Parts of the depth for as many threads as hide how long reading takes."""
    wanted = PACKED_WARPS * num_multiprocessors(device) * tile.outputs // (num_outputs * tile.num_warps)
    return replace(tile, num_splits=_power_of_two(max(1, min(wanted, 8)), max(1, size // PACKED_SPLIT_DEPTH)))


def eight_bit_tile(device: torch.device, num_rows: int, num_outputs: int, size: int, one_group: bool
                   ) -> EightBitTile:
    if device.type == "cpu":
        return EightBitTile(16, 16, EIGHT_BIT_DEPTH, 1 if size <= 256 else 2, 4, 1)  # the interpreter
    if family(device) != "hopper":
        edge, num_warps = (64, 4) if num_rows <= 64 else (128, 8)
        return EightBitTile(edge, edge, EIGHT_BIT_DEPTH, 1, num_warps, 3)
    num_sms = num_multiprocessors(device)
    if num_rows > 512:
        return EightBitTile(128, 128, 2 * EIGHT_BIT_DEPTH if one_group else EIGHT_BIT_DEPTH, 1, 8, 3)
    tiles = -(-num_rows // 64) * -(-num_outputs // 64)
    if tiles > 2.4 * num_sms or not one_group:
        return EightBitTile(64, 128 if tiles > num_sms else 64, EIGHT_BIT_DEPTH, 1, 4, 3)
    if tiles > 1.2 * num_sms:
        return EightBitTile(64, 128, 2 * EIGHT_BIT_DEPTH, 1, 4, 4)
    is_deep = 2 * tiles <= num_sms and size >= 8192
    return EightBitTile(64, 64, 2 * EIGHT_BIT_DEPTH, 2 if is_deep else 1, 4, 6)


def multiplies(device: torch.device, kind: str) -> bool:
    """Whether matrix units take two matrices of this kind of 8 bits, and Triton has what our product of them needs."""
    return (device.type == "cuda" and _has_descriptors()
            and _capability(device.index or 0) >= ((8, 9) if kind == "e4m3" else (8, 0)))


def library_multiplies(device: torch.device) -> bool:
    """Whether torch's product of two e4m3 matrices, with a scale for each row and output, is known to be right."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return family(device) == "hopper" and version >= (2, 9)


@cache
def _has_descriptors() -> bool:
    """Triton 3.4 and newer."""
    return importlib.util.find_spec("triton.tools.tensor_descriptor") is not None


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def code_reader(device: torch.device) -> str:
    """How kernels make float16 of e4m3: by an instruction, by assembly that moves bits, or plainly."""
    if not has_assembly(device):
        return "plain"
    return "instruction" if multiplies(device, "e4m3") else "bits"


def unpack_tile() -> Tile:
    """Rows and words of a program."""
    return Tile(16, 64, 4, 1)


def experts_tile(device: torch.device, element_bytes: int, rows_per_expert: int) -> ExpertsTile:
    if _is_batch_invariant:
        rows_per_expert = 1
    if device.type == "cpu":
        return ExpertsTile(16, 16, 32, 4, 1)  # the interpreter
    stages = 3 if family(device) == "hopper" else 2
    if element_bytes == 4:
        return ExpertsTile(16, 64, 32, 4, 2)
    if rows_per_expert <= 16:
        return ExpertsTile(16, 64, 128, 4, stages)
    if rows_per_expert <= 64 or family(device) == "default":
        return ExpertsTile(32, 64, 64, 4, stages)
    return ExpertsTile(128, 64, 64, 8, stages)


def has_fast_logarithm(device: torch.device) -> bool:
    """The device's own, in one instruction where the exact one takes twenty; the interpreter has only the latter."""
    return device.type == "cuda"


def has_assembly(device: torch.device) -> bool:
    """Whether kernels may hold some: not in the interpreter, nor before Ampere, which lacks some instructions of it."""
    return device.type == "cuda" and family(device) != "default"


@cache
def early(device: torch.device) -> dict[str, bool]:
    """Launch options of a kernel that calls `pdl`: programmatic dependent launch where there is such a thing."""
    if device.type == "cuda" and family(device) == "hopper":
        # Late: the engine asks this file for numbers also where there is no Triton.
        from quire.kernels import pdl

        if not pdl.AVAILABLE:
            return {"EARLY": False}
        return {"EARLY": True, "launch_pdl": True}
    return {"EARLY": False}


def num_splits(device: torch.device, num_pairs: int, max_context_len: int) -> int:
    """Into how many parts the context of each pair of a sequence and a KV head is cut at most: a power of two, from
    numbers that the host knows.

    Few pairs get as many programs as run at once, which also those have to that end at once; many pairs up to four
    parts, for where one context is long and others are short.
    """
    wave = num_multiprocessors(device) * WAVES
    wanted = max(wave // 2 // num_pairs, min(wave // num_pairs, 4))
    return _power_of_two(wanted, max_context_len // SPLIT_MIN_TOKENS)


def num_shared_splits(device: torch.device, num_programs: int, max_context_len: int) -> int:
    """As num_splits, of what sequences begin with in common."""
    wanted = WAVES * num_multiprocessors(device) // max(num_programs, 1)
    return _power_of_two(wanted, max_context_len // SHARED_SPLIT_MIN_TOKENS)


def _power_of_two(wanted: int, allowed: int) -> int:
    return 1 << (max(1, min(wanted, allowed, MAX_SPLITS)).bit_length() - 1)


def warps_for(block: int) -> int:
    """Warps of a program that holds one row of `block` elements."""
    return max(1, min(16, block // 512))
