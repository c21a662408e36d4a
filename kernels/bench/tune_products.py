"""Finds tiles for the products of few tokens: `python -m quire.kernels.bench.tune_products llama-3.1-8b`.

A chain of layers, as a decode step has them, is captured in a graph, with weights that no cache holds. One product's
tile is changed at a time and the whole chain timed, since what a kernel costs depends on those before and behind it;
the fastest stays, and the next product is tried, until none gains. Prints what each was and became.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
import triton

from quire.kernels import launch, ops, product
from quire.kernels.attention_spec import Rotary
from quire.kernels.bench import cases
from quire.kernels.bench.time_gpu import median_us
from quire.kernels.launch import ProductTile

DEVICE, DTYPE = "cuda", torch.bfloat16
LEAST_BYTES = 1 << 30  # of a chain's weights
CONTEXT = 400
LEAST_GAIN_US = 0.15
PARTS = ("qkv", "out", "gate_up", "down")
# hidden, heads, KV heads, head_dim, inner
SHAPES = {
    "llama-7b": (4096, 32, 32, 128, 11008),
    "llama-3.1-8b": (4096, 32, 8, 128, 14336),
    "llama-13b-half": (5120, 20, 20, 128, 6912),
    "qwen2.5-0.5b": (896, 14, 2, 64, 4864),
    "qwen2.5-7b": (3584, 28, 4, 128, 18944),
    "qwen3-8b": (4096, 32, 8, 128, 12288),
    "gemma-3-4b": (2560, 8, 4, 256, 10240),
}
Tiles = dict[str, ProductTile]


class Chain:
    def __init__(self, rows: int, hidden: int, heads: int, kv_heads: int, head_dim: int, inner: int) -> None:
        def weights(outputs: int, size: int) -> torch.Tensor:
            return torch.randn(outputs, size, device=DEVICE, dtype=DTYPE) * size ** -0.5

        self.x = torch.randn(rows, hidden, device=DEVICE, dtype=DTYPE)
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.norm = torch.ones(hidden, device=DEVICE, dtype=DTYPE)
        width = (heads + 2 * kv_heads) * head_dim
        self.shapes = dict(zip(PARTS, ((width, hidden), (hidden, heads * head_dim), (inner, hidden), (hidden, inner))))
        self.layer_bytes = DTYPE.itemsize * hidden * (width + heads * head_dim + 3 * inner)
        self.layers = [[weights(2 * inner if part == "gate_up" else outputs, size)
                        for part, (outputs, size) in self.shapes.items()]
                       for _ in range(-(-LEAST_BYTES // self.layer_bytes))]
        self.cache = cases.paged([CONTEXT] * rows, [1] * rows, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
                                 dtype=DTYPE, device=DEVICE)
        self.rotary = Rotary(torch.randn(2 * CONTEXT, head_dim, device=DEVICE))
        self.tiles: Tiles = {part: self._usual(part) for part in PARTS}

    def _usual(self, part: str) -> ProductTile:
        outputs, size = self.shapes[part]
        device, rows = torch.device(DEVICE, 0), self.x.shape[0]
        tile = (launch.gated_product_tile(device, 2, rows, outputs) if part == "gate_up" else
                launch.product_tile(device, 2, rows, outputs, size))
        assert tile is not None, "the library's business"
        return tile

    def run(self) -> None:
        residual, update = self.x, torch.zeros_like(self.x)
        cache, heads, kv_heads = self.cache, self.heads, self.kv_heads
        for qkv, out, gate_up, down in self.layers:
            x = self._product("qkv", ops.add_rms_norm(update, residual, self.norm, 1e-6), qkv)
            q, k, v = x.view(x.shape[0], -1, self.head_dim).split((heads, kv_heads, kv_heads), dim=1)
            x = ops.paged_attention(q, cache.k_cache, cache.v_cache, cache.inputs, cache.spec, (k, v, self.rotary))
            x = ops.add_rms_norm(self._product("out", x.flatten(1), out), residual, self.norm, 1e-6)
            update = self._product("down", self._product("gate_up", x, gate_up), down)

    def _product(self, part: str, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return product._launch(x, weight, None, self.tiles[part], num_outputs=self.shapes[part][0],
                               kind=0 if part == "gate_up" else -1)

    def time(self) -> float:
        """Microseconds a layer; the better of two, as clocks come and go."""
        return min(median_us([self.run]) for _ in range(2)) / len(self.layers)

    def improve(self, part: str, base: float) -> float:
        """The fastest tile for one product; what a layer takes with it."""
        best, fastest = self.tiles[part], base
        for tile in self._compiled(part):
            self.tiles[part] = tile
            if (us := self.time()) < fastest - LEAST_GAIN_US:
                best, fastest = tile, us
        self.tiles[part] = best
        return fastest

    def _compiled(self, part: str) -> list[ProductTile]:
        weight = self.layers[0][PARTS.index(part)]
        x = torch.randn(self.x.shape[0], weight.shape[1], device=DEVICE, dtype=DTYPE)

        def fits(tile: ProductTile) -> bool:
            try:
                product._launch(x, weight, None, tile, num_outputs=self.shapes[part][0],
                                kind=0 if part == "gate_up" else -1)
                torch.cuda.synchronize()
            except triton.runtime.errors.OutOfResources:
                return False
            return True

        tiles = list(candidates(gated=part == "gate_up"))
        with ThreadPoolExecutor(12) as pool:
            return list(itertools.compress(tiles, pool.map(fits, tiles)))


def candidates(*, gated: bool) -> Iterator[ProductTile]:
    for outputs, depth, splits, warps, stages in itertools.product((16, 32, 64), (64, 128, 256), (1, 2, 4), (2, 4),
                                                                   (3, 4, 6)):
        in_shared = outputs * depth * 2 * stages * (2 if gated else 1)
        fits = 24576 <= in_shared <= 200_000 and 4096 <= outputs * depth <= 16384
        if fits and (splits == 1 or not gated) and warps <= max(2, outputs // 16) <= 4 * warps:
            yield ProductTile(outputs, depth, splits, warps, stages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES, nargs="+")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--only-time", action="store_true", help="with the tiles that are used")
    options = parser.parse_args()
    print(torch.cuda.get_device_name())
    for name in options.shape:
        chain = Chain(options.rows, *SHAPES[name])
        was = us = chain.time()
        print(f"{name}, {options.rows} rows: {us:.2f} us a layer of {chain.layer_bytes / 2**20:.0f} MiB, "
              f"{chain.layer_bytes / us / 1e6:.2f} TB/s", flush=True)
        before = dict(chain.tiles)
        while not options.only_time:
            began = us
            for part in PARTS:
                us = chain.improve(part, us)
            if us > began - LEAST_GAIN_US:
                break
        for part in PARTS:
            changed = "" if before[part] == chain.tiles[part] else f" -> {chain.tiles[part]}"
            print(f"  {part:8} {chain.shapes[part]}: {before[part]}{changed}")
        print(f"  {was:.2f} -> {us:.2f} us", flush=True)


if __name__ == "__main__":
    main()
