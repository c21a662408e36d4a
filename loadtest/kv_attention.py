"""Time attention over a cache of 16 bits and of 8, side by side: `python -m quire.loadtest.kv_attention [--tune]`.

For decodes of several models, batches and contexts, and for prompts (whole, and chunks of long ones): microseconds of
one layer's attention, writing the newest K and V included; how near the reading of the cache comes to the memory's rate
(a large copy's on an H200); and what share of the time with 16 bits the codes take. `--tune` tries other tiles for the
codes and prints the best. Prints a table; written to $OUT/kv.txt too where OUT is set. Run kernels/bench/check_gpu.py
first.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton

from quire.kernels import launch, ops
from quire.kernels.attention_spec import Rotary
from quire.kernels.bench import cases
from quire.kernels.bench.time_gpu import CEILING_TB_S, copies_for, median_us
from quire.loadtest.tile_trials import Table, compile_all, time_each

DEVICE, DTYPE = "cuda", torch.bfloat16
CODES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
# heads, KV heads, head_dim
MODELS = {"qwen2.5-7b": (28, 4, 128), "llama-3-8b": (32, 8, 128), "llama-7b": (32, 32, 128),
          "qwen2.5-0.5b": (14, 2, 64)}
DECODES = [(1, 2048), (1, 32768), (8, 8192), (32, 512), (32, 2048), (32, 8192), (128, 2048), (256, 512), (256, 2048)]
PROMPTS = [("prompt of 2048", 2048, 2048, 1), ("4 prompts of 2048", 2048, 2048, 4), ("prompt of 300", 300, 300, 1),
           ("last 512 of 8192", 8192, 512, 1), ("last 2048 of 32768", 32768, 2048, 1)]
Calls = list[Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="*", default=["e4m3"], choices=CODES)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--tune", action="store_true", help="try other tiles")
    options = parser.parse_args()
    torch.manual_seed(0)
    table = Table()
    show = table.show
    show(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    for model in options.models:
        if options.tune:
            tune(model, options.kinds[0], show)
            continue
        for name, contexts, queries in steps():
            num_bytes = cached_bytes(model, contexts)
            wide = median_us(calls_of(model, contexts, queries, None))
            line = f"{model:<13}{name:<28}16 bits {_rated(wide, num_bytes, queries)}"
            for kind in options.kinds:
                us = median_us(calls_of(model, contexts, queries, CODES[kind]))
                line += f"; {kind} {_rated(us, num_bytes // 2, queries)} {100 * us / wide:>4.0f}% of the time"
            show(line)
            torch.cuda.empty_cache()
    table.save("kv.txt")


def steps() -> Iterator[tuple[str, list[int], list[int]]]:
    for batch, context in DECODES:
        yield f"decode {batch} x {context}", [context] * batch, [1] * batch
    for name, context, queries, batch in PROMPTS:
        yield name, [context] * batch, [queries] * batch


def cached_bytes(model: str, contexts: list[int]) -> int:
    """Of K and V in 16 bits."""
    _, kv_heads, head_dim = MODELS[model]
    return 2 * sum(contexts) * kv_heads * head_dim * DTYPE.itemsize


def calls_of(model: str, contexts: list[int], queries: list[int], codes: torch.dtype | None) -> Calls:
    heads, kv_heads, head_dim = MODELS[model]
    rotary = Rotary(torch.randn(max(contexts), head_dim, device=DEVICE))
    calls: Calls = []
    for _ in range(copies_for(cached_bytes(model, contexts) // 2)):
        case = cases.paged(contexts, queries, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=DTYPE,
                           device=DEVICE)
        caches = case.k_cache, case.v_cache
        if codes is not None:
            caches = case.k_cache.to(codes), case.v_cache.to(codes)  # in whatever order
        k, v = torch.randn(2, sum(queries), kv_heads, head_dim, device=DEVICE, dtype=DTYPE)
        calls.append(partial(_attend, case, caches, (k, v, rotary)))
    return calls


def _attend(case: cases.Paged, caches: tuple[torch.Tensor, torch.Tensor], fresh: Any) -> None:
    case.inputs.scratch = {}
    ops.paged_attention(case.q, *caches, case.inputs, case.spec, fresh)


def _rated(us: float, num_bytes: int, queries: list[int]) -> str:
    if max(queries) > 1:
        return f"{us:>9.1f} us"
    rate = num_bytes / us / 1e6
    return f"{us:>9.1f} us {rate:>5.2f} TB/s {100 * rate / CEILING_TB_S:>3.0f}%"


def tune(model: str, kind: str, show: Callable[[str], None]) -> None:
    for name, contexts, queries, function, tiles in _trials():
        calls = calls_of(model, contexts, queries, CODES[kind])
        own = median_us(calls)
        compile_all(function, tiles, calls[:1])
        times = time_each(function, tiles, calls)
        best = sorted(times, key=lambda tile: times[tile])[:4]
        show(f"{model} {name} {kind}: own {own:.1f} us; best "
             + "; ".join(f"{tile} {times[tile]:.1f}" for tile in best))
        torch.cuda.empty_cache()


def _trials() -> Iterator[tuple[str, list[int], list[int], str, list[Any]]]:
    """A step's name, contexts and queries; the function of `launch` whose tile it hangs on, and tiles to try."""
    balanced = [launch.BalancedTile(columns, programs, warps, stages) for columns, programs, warps, stages in
                itertools.product((64, 128), (3, 4, 5, 6, 8), (2, 4), (2, 3))]
    decode = [launch.Tile(16, columns, warps, stages) for columns, warps, stages in
              itertools.product((64, 128, 256), (2, 4), (2, 3, 4))]
    prefill = [launch.Tile(rows, columns, warps, stages) for rows, columns, warps, stages in
               itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3))]
    yield "decode 256 x 2048", [2048] * 256, [1] * 256, "balanced_tile", balanced
    yield "decode 1 x 32768", [32768], [1], "decode_tile", decode
    yield "decode 8 x 8192", [8192] * 8, [1] * 8, "decode_tile", decode
    yield "last 512 of 8192", [8192], [512], "prefill_tile", prefill


if __name__ == "__main__":
    main()
