"""Time products with packed weights: `python -m quire.loadtest.packed_products [--tune] [--kinds int4 e4m3]`.

For the layers of 7B models and each number of rows: microseconds, how near the reading of the codes comes to the
memory's rate (a large copy's on an H200), and how much faster than the same product in bfloat16 it is; of e4m3 also
what torch's own product of rounded inputs takes. `--tune` tries other tiles for few rows and prints the best. Prints a
table; written to $OUT/packed.txt too where OUT is set. Run kernels/bench/check_gpu.py first.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import triton

from quire.engine.layers.product import product
from quire.engine.quantization.product import QuantizedProduct
from quire.kernels import compile_ahead, launch, ops
from quire.kernels.bench import cases
from quire.kernels.bench.time_gpu import CEILING_TB_S, copies_for, median_us
from quire.kernels.packed_weight import Kind, PackedWeight

DEVICE, DTYPE = "cuda", torch.bfloat16
# outputs and inputs of qkv, o, gate and up, down
SHAPES = {"qwen2.5-7b": [(4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944)],
          "llama-7b": [(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)]}
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 8192)
FORMS: dict[str, tuple[Kind, int, bool]] = {
    "int4": ("int4", 128, False), "int4-zeros": ("int4", 128, True), "int4-g32": ("int4", 32, False),
    "e4m3": ("e4m3", 0, False), "e4m3-blocks": ("e4m3", 128, False), "int8": ("int8", 0, False),
    "nvfp4": ("e2m1", 16, False), "mxfp4": ("e2m1", 32, False), "nf4": ("nf4", 64, False)}


def weights_of(form: str, num_outputs: int, size: int) -> list[PackedWeight]:
    kind, group, with_zeros = FORMS[form]
    made = []
    for _ in range(copies_for(num_outputs * size // 2)):
        weight, _ = cases.packed_weight(kind, num_outputs, 256, group or 256, with_zeros=with_zeros, device=DEVICE)
        columns = -(-size // 256)
        groups = -(-size // group) if group else 1
        scales = weight.scales.half().repeat(columns, 1)[:groups].contiguous()
        zeros = None if weight.zeros is None else weight.zeros.half().repeat(columns, 1)[:groups].contiguous()
        made.append(PackedWeight(kind, weight.codes.repeat(1, columns), scales, size, group or size, zeros,
                                 inputs="e4m3" if kind == "e4m3" else "int8" if kind == "int8" else None))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="*", default=["int4", "int4-zeros", "e4m3", "e4m3-blocks"], choices=FORMS)
    parser.add_argument("--models", nargs="*", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--rows", nargs="*", type=int, default=list(ROWS))
    parser.add_argument("--tune", action="store_true", help="try other tiles for 1, 16, 32, 64 and 128 rows")
    options = parser.parse_args()
    torch.manual_seed(0)
    lines: list[str] = []

    def show(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    show(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for model in options.models:
        for num_outputs, size in SHAPES[model]:
            floats = {} if options.tune else time_floats(num_outputs, size, options.rows)
            for form in options.kinds:
                weights = weights_of(form, num_outputs, size)
                if options.tune:
                    tune(form, weights, show)
                    continue
                for num_rows in options.rows:
                    us = time_product(weights, num_rows)
                    theirs = ""
                    if form == "e4m3" and num_rows > 32:
                        theirs = f"; torch's product {time_torch(weights, num_rows):.1f} us"
                    rate = weights[0].num_bytes / us / 1e6
                    show(f"{model} {num_outputs}x{size} {form:<12}{num_rows:>5} rows {us:>9.1f} us {rate:>6.2f} TB/s "
                         f"{100 * rate / CEILING_TB_S:>4.0f}% {floats[num_rows] / us:>6.2f}x bfloat16{theirs}")
                del weights
                torch.cuda.empty_cache()
    if os.environ.get("OUT"):
        (Path(os.environ["OUT"]) / "packed.txt").write_text("\n".join(lines) + "\n")


def _always(tile: launch.PackedTile, *args: object) -> launch.PackedTile:
    return tile


def time_floats(num_outputs: int, size: int, rows: list[int]) -> dict[int, float]:
    weights = [torch.randn(num_outputs, size, device=DEVICE, dtype=DTYPE)
               for _ in range(copies_for(2 * num_outputs * size))]
    products = [product(weight) for weight in weights]
    times = {}
    for num_rows in rows:
        x = torch.randn(num_rows, size, device=DEVICE, dtype=DTYPE)
        times[num_rows] = median_us([partial(one, x) for one in products])
    return times


def time_product(weights: list[PackedWeight], num_rows: int) -> float:
    x = torch.randn(num_rows, weights[0].size, device=DEVICE, dtype=DTYPE)
    return median_us([partial(QuantizedProduct(weight, None), x) for weight in weights])


def time_torch(weights: list[PackedWeight], num_rows: int) -> float:
    """Rounding the inputs, and torch's product by rows' and outputs' scales."""
    x = torch.randn(num_rows, weights[0].size, device=DEVICE, dtype=DTYPE)

    def call(weight: PackedWeight) -> torch.Tensor:
        codes, scales = ops.round_rows(x, "e4m3", weight.size)
        return torch._scaled_mm(codes.view(torch.float8_e4m3fn), weight.codes.view(torch.float8_e4m3fn).t(),
                                scale_a=scales, scale_b=weight.scales.float(), out_dtype=DTYPE)

    return median_us([partial(call, weight) for weight in weights])


def tune(form: str, weights: list[PackedWeight], show: Callable[[str], None]) -> None:
    num_outputs, size = weights[0].outputs, weights[0].size
    chosen = launch.packed_tile
    for num_rows in (1, 16, 32, 64, 128):
        x = torch.randn(num_rows, size, device=DEVICE, dtype=DTYPE)
        calls: list[Callable[[], object]] = [partial(ops.packed_product, x, weight, None) for weight in weights]
        own = chosen(x.device, 2, num_rows, num_outputs, size)
        assert own is not None
        tiles = [own, *tiles_for(num_rows, weights[0].scales.shape[0] == 1)]
        times: dict[launch.PackedTile, float] = {}
        try:
            compile_ahead.kernels_of(partial(_once_each, tiles, calls[0]), torch.cuda.current_device())
            for tile in tiles:
                launch.packed_tile = partial(_always, tile)
                with contextlib.suppress(triton.runtime.errors.OutOfResources):  # a tile that does not fit is none
                    times[tile] = median_us(calls)
        finally:
            launch.packed_tile = chosen
        best = sorted(times, key=lambda tile: times[tile])[:3]
        show(f"{form} {num_outputs}x{size} {num_rows} rows: own {own} {times[own]:.1f} us; best "
             + "; ".join(f"{tile} {times[tile]:.1f}" for tile in best))


def tiles_for(num_rows: int, has_one_group: bool) -> list[launch.PackedTile]:
    rows = max(16, 1 << (num_rows - 1).bit_length())
    return [launch.PackedTile(rows, outputs, runs, splits, warps, stages) for outputs, runs, splits, warps, stages in
            itertools.product((32, 64, 128), (1, 2, 4) if has_one_group else (1,), (1, 2, 4, 8), (4, 8), (3, 4, 6))]


def _once_each(tiles: list[launch.PackedTile], call: Callable[[], object]) -> None:
    for tile in tiles:
        launch.packed_tile = partial(_always, tile)
        call()


if __name__ == "__main__":
    main()
