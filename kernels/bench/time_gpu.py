"""Time the kernels that a step's cost hangs on: `python -m quire.kernels.bench.time_gpu [--only attention]`.

Medians of CUDA graph replays over rotating inputs larger than the L2, against ceilings measured on an H200 (a large
copy, a large bfloat16 product). Run check_gpu first.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch

from quire.kernels import ops
from quire.kernels.attention_spec import Rotary
from quire.kernels.bench import cases

DEVICE = "cuda"
DTYPE = torch.bfloat16
CEILING_TB_S = 4.3
CEILING_TFLOP_S = 770.0
L2_BYTES = 64 << 20
REPLAYS = 20


def median_us(calls: list[Callable[[], object]], replays: int = REPLAYS) -> float:
    """Microseconds of one call: all of them captured in one graph, replayed, divided."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return sorted(times)[len(times) // 2]


def report(name: str, us: float, num_bytes: float = 0, flops: float = 0) -> None:
    line = f"{name:<52}{us:>10.1f} us"
    if num_bytes:
        rate = num_bytes / us / 1e6
        line += f"{rate:>8.2f} TB/s {100 * rate / CEILING_TB_S:>5.0f}%"
    if flops:
        rate = flops / us / 1e6
        line += f"{rate:>8.0f} TFLOP/s {100 * rate / CEILING_TFLOP_S:>5.0f}%"
    print(line, flush=True)


def copies_for(num_bytes: int) -> int:
    """How many sets of inputs to rotate among so that none is found in the L2."""
    return max(2, min(20, 4 * L2_BYTES // num_bytes))


def time_attention() -> None:
    models = {"llama-7b": (32, 32, 128), "qwen2.5-7b": (28, 4, 128), "qwen2.5-0.5b": (14, 2, 64)}
    for name, (heads, kv_heads, head_dim) in models.items():
        for batch in (1, 32, 256):
            for context in (128, 512, 2048):
                num_bytes = 2 * batch * context * kv_heads * head_dim * DTYPE.itemsize
                us = median_us(_attention_calls([context] * batch, [1] * batch, heads, kv_heads, head_dim, num_bytes))
                report(f"decode {name} batch {batch} context {context}", us, num_bytes)
        length = 2048
        flops = 2 * heads * head_dim * length * length
        us = median_us(_attention_calls([length], [length], heads, kv_heads, head_dim, L2_BYTES))
        report(f"prefill {name} {length}", us, flops=flops)
        us = median_us(_attention_calls([length] * 4, [length] * 4, heads, kv_heads, head_dim, L2_BYTES))
        report(f"prefill {name} 4 x {length}", us, flops=4 * flops)


def _attention_calls(contexts: list[int], queries: list[int], heads: int, kv_heads: int, head_dim: int,
                     num_bytes: int) -> list[Callable[[], object]]:
    sets = [cases.paged(contexts, queries, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=DTYPE,
                        device=DEVICE) for _ in range(copies_for(num_bytes))]
    return [partial(ops.paged_attention, c.q, c.k_cache, c.v_cache, c.inputs, c.spec) for c in sets]


def time_norms() -> None:
    for rows, size in ((1, 4096), (32, 4096), (256, 3584), (8192, 4096)):
        num_bytes = 4 * rows * size * DTYPE.itemsize
        weight = torch.randn(size, device=DEVICE, dtype=DTYPE)
        sets = [torch.randn(2, rows, size, device=DEVICE, dtype=DTYPE) for _ in range(copies_for(num_bytes))]
        us = median_us([partial(ops.add_rms_norm, x, residual, weight, 1e-5) for x, residual in sets])
        report(f"add_rms_norm {rows} x {size}", us, num_bytes)


def time_activation() -> None:
    for rows, size in ((1, 11008), (256, 11008), (8192, 11008)):
        num_bytes = 3 * rows * size * DTYPE.itemsize
        sets = [torch.randn(rows, 2 * size, device=DEVICE, dtype=DTYPE) for _ in range(copies_for(num_bytes))]
        us = median_us([partial(ops.gated_activation, gate_up, "silu") for gate_up in sets])
        report(f"silu {rows} x {size}", us, num_bytes)


def time_rotary() -> None:
    for rows in (1, 256, 8192):
        heads, kv_heads, head_dim, block_size = 32, 8, 128, 16
        num_bytes = rows * (2 * heads + 4 * kv_heads) * head_dim * DTYPE.itemsize
        table = Rotary(torch.randn(8192, head_dim, device=DEVICE))
        positions = torch.arange(rows, dtype=torch.int32, device=DEVICE)
        k_cache, v_cache = (torch.zeros(rows // block_size + 1, kv_heads, block_size, head_dim, device=DEVICE,
                                        dtype=DTYPE) for _ in range(2))
        sets = [torch.randn(rows, heads + 2 * kv_heads, head_dim, device=DEVICE, dtype=DTYPE).split(
            [heads, kv_heads, kv_heads], dim=1) for _ in range(copies_for(num_bytes))]
        us = median_us([partial(ops.rotary_and_cache, q, k, v, table, positions, positions, k_cache, v_cache)
                        for q, k, v in sets])
        report(f"rotary_and_cache {rows} tokens", us, num_bytes)


def time_sampling() -> None:
    for vocab_size in (32000, 152064):
        for rows in (1, 256):
            num_bytes = rows * vocab_size * DTYPE.itemsize
            sets = [torch.randn(rows, vocab_size, device=DEVICE, dtype=DTYPE) * 2 for _ in range(copies_for(num_bytes))]
            one, none = torch.ones(rows, device=DEVICE), torch.zeros(rows, device=DEVICE)
            integers = torch.arange(rows, device=DEVICE, dtype=torch.int32)
            # name: temperature, top_k, top_p
            for name, (heat, k, p) in {"greedy": (0.0, 0, 1.0), "unfiltered": (1.0, 0, 1.0), "top_k 50": (1.0, 50, 1.0),
                                       "top_p 0.9": (1.0, 0, 0.9), "both": (1.0, 50, 0.9)}.items():
                us = median_us([partial(ops.sample, logits, one * heat, integers * 0 + k, one * p, none,
                                        integers.long(), integers, filtered=k > 0 or p < 1) for logits in sets])
                report(f"sample {name} {rows} x {vocab_size}", us, num_bytes)


TIMINGS = [time_attention, time_norms, time_activation, time_rotary, time_sampling]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run the timings with this in their name")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for timing in TIMINGS:
        if options.only in timing.__name__:
            timing()


if __name__ == "__main__":
    main()
