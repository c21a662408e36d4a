"""What GPUs can do at most, by their makers' data sheets: dense 16-bit products, memory and its bandwidth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    memory_bytes: float
    bytes_per_s: float
    flop_per_s: float


GPUS = {
    "h200": Gpu(141e9, 4.8e12, 989e12),
    "h100": Gpu(80e9, 3.35e12, 989e12),
    "a100-80gb": Gpu(80e9, 2.04e12, 312e12),
    "a100-40gb": Gpu(40e9, 1.56e12, 312e12),
    "l40s": Gpu(48e9, 864e9, 362e12),
    "l4": Gpu(24e9, 300e9, 121e12),
    "a10": Gpu(24e9, 600e9, 125e12),
    "rtx-4090": Gpu(24e9, 1008e9, 165e12),
}
