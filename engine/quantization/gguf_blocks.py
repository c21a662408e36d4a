"""GGUF's blocks: whole numbers with a scale, and often a least value, for every 16 or 32 of a row.

What a type's block holds is one function, by llama.cpp's ggml-common.h and ggml-quants.c. Types that are not here are
made floats by the reader. Called by `quire.engine.weights.load`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from quire.engine.quantization.integers import cut_integers
from quire.engine.weights.checkpoint import View
from quire.engine.weights.scheme import Part, WeightScheme
from quire.kernels.packed_weight import PackedWeight, packed

_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True, slots=True)
class Numbers:
    """Of blocks [rows, blocks]: w = q * scale + least, or (q - 2 ** (bits - 1)) * scale where there is no least."""

    q: torch.Tensor  # uint8 [rows, blocks, elements]
    bits: int
    scales: torch.Tensor  # float32 [rows, blocks, groups]
    least: torch.Tensor | None = None


def _half(data: torch.Tensor) -> torch.Tensor:
    """float16 in two bytes: [..., 2] -> float32 [..., 1]."""
    return data.contiguous().view(torch.float16).float()


def _low_then_high(data: torch.Tensor) -> torch.Tensor:
    return torch.cat((data & 15, data >> 4), -1)


def _fifth_bits(data: torch.Tensor) -> torch.Tensor:
    """Of 32 elements, one bit each in four bytes, the first lowest; as the fifth bit of a number."""
    bits = torch.arange(8, device=data.device, dtype=torch.uint8)
    return ((data.unsqueeze(-1) >> bits & 1) << 4).flatten(-2)


def _q4_0(b: torch.Tensor) -> Numbers:
    return Numbers(_low_then_high(b[..., 2:]), 4, _half(b[..., :2]))


def _q4_1(b: torch.Tensor) -> Numbers:
    return Numbers(_low_then_high(b[..., 4:]), 4, _half(b[..., :2]), _half(b[..., 2:4]))


def _q5_0(b: torch.Tensor) -> Numbers:
    return Numbers(_low_then_high(b[..., 6:]) | _fifth_bits(b[..., 2:6]), 5, _half(b[..., :2]))


def _q5_1(b: torch.Tensor) -> Numbers:
    return Numbers(_low_then_high(b[..., 8:]) | _fifth_bits(b[..., 4:8]), 5, _half(b[..., :2]), _half(b[..., 2:4]))


def _q8_0(b: torch.Tensor) -> Numbers:
    return Numbers(b[..., 2:] ^ 128, 8, _half(b[..., :2]))


def _iq4_nl(b: torch.Tensor) -> Numbers:
    values = torch.tensor([value + 128 for value in _IQ4_NL], dtype=torch.uint8, device=b.device)
    return Numbers(values[_low_then_high(b[..., 2:]).long()], 8, _half(b[..., :2]))


def _scales_and_leasts(b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of Q4_K and Q5_K: eight of each, six bits each, in twelve bytes behind two factors."""
    s = b[..., 4:16]
    low, middle, high = s[..., :4], s[..., 4:8], s[..., 8:]
    scales = torch.cat((low & 63, high & 15 | (low >> 6) << 4), -1)
    leasts = torch.cat((middle & 63, high >> 4 | (middle >> 6) << 4), -1)
    return _half(b[..., :2]) * scales, -_half(b[..., 2:4]) * leasts


def _q4_k(b: torch.Tensor) -> Numbers:
    return Numbers(_low_then_high(b[..., 16:].unflatten(-1, (4, 32))).flatten(-2), 4, *_scales_and_leasts(b))


def _q5_k(b: torch.Tensor) -> Numbers:
    low = _low_then_high(b[..., 48:].unflatten(-1, (4, 32))).flatten(-2)
    places = torch.arange(8, device=b.device, dtype=torch.uint8).unsqueeze(1)
    fifth = (b[..., 16:48].unsqueeze(-2) >> places & 1) << 4
    return Numbers(low | fifth.flatten(-2), 5, *_scales_and_leasts(b))


def _q6_k(b: torch.Tensor) -> Numbers:
    low = _low_then_high(b[..., :128].unflatten(-1, (2, 64)))  # of each half of the block: 64 bytes, two bits in qh
    shifts = torch.arange(0, 8, 2, device=b.device, dtype=torch.uint8).unsqueeze(1)
    high = (b[..., 128:192].unflatten(-1, (2, 1, 32)) >> shifts & 3).flatten(-2)
    scales = b[..., 192:208].contiguous().view(torch.int8).float() * _half(b[..., 208:])
    return Numbers((low | high << 4).flatten(-2), 6, scales)


_TYPES: dict[str, Callable[[torch.Tensor], Numbers]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "IQ4_NL": _iq4_nl, "Q4_K": _q4_k,
    "Q5_K": _q5_k, "Q6_K": _q6_k}


@dataclass(frozen=True)
class GgufBlocks:
    type: str

    def read(self, view: View, part: Part, in_features: int, columns: slice, *, transposed: bool) -> PackedWeight:
        blocks = view.take_blocks("weight", (part.num_rows, in_features), rows=part.rows)
        if blocks.is_meta:
            return packed("int8", blocks.new_empty((part.size, in_features), dtype=torch.uint8),
                          blocks.new_empty((1, part.size), dtype=torch.float32), in_features)
        numbers = _TYPES[self.type](blocks)
        q, scales, zeros = numbers.q, numbers.scales, None
        group = q.shape[-1] // scales.shape[-1]
        if numbers.least is not None:
            # Where the scale is 0, all weights of a group are its least: q 0, a scale of 1 and -least as the zero.
            is_flat = scales == 0
            q = q.masked_fill(is_flat.repeat_interleave(group, -1), 0)
            scales = scales.masked_fill(is_flat, 1.0)
            zeros = (-numbers.least / scales).flatten(1).T
        return cut_integers(q.flatten(1)[:, columns], zeros, scales.flatten(1).T, numbers.bits, group, in_features,
                            columns, view.name)


class GgufSchemes:
    usual: WeightScheme = GgufBlocks("Q4_0")

    def of(self, view: View, *, is_layer: bool) -> WeightScheme | None:
        kind = view.block_type("weight") if is_layer else None
        return GgufBlocks(kind) if kind in _TYPES else None

    def ignores(self, name: str) -> bool:
        return False


def schemes(config: dict[str, Any]) -> GgufSchemes:
    return GgufSchemes()
