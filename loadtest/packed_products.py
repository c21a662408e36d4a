"""Time products with packed weights: `python -m quire.loadtest.packed_products [--tune] [--kinds int4 e4m3]`.

For the layers of 7B models and each number of rows: microseconds, how near the reading of the codes comes to the
memory's rate (a large copy's on an H200), and how much faster than the same product in bfloat16 it is; of e4m3 also
what torch's own product of rounded inputs takes. `--tune` tries other tiles for few rows and prints the best. Prints a
table; written to $OUT/packed.txt too where OUT is set. Run kernels/bench/check_gpu.py first.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from functools import partial

import torch

from quire.engine.layers.product import product
from quire.engine.quantization.product import QuantizedProduct
from quire.kernels import launch, ops
from quire.kernels.bench.time_gpu import CEILING_TB_S, copies_for, median_us
from quire.kernels.packed_weight import Kind, PackedWeight, run_of, words_for
from quire.loadtest.tile_trials import Table, compile_all, time_each

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
    group = group or size
    words = words_for(kind, size, group)
    shape = (num_outputs, -(-size // run_of(kind, words)) * words)
    groups = (-(-size // group), num_outputs)
    made = []
    for _ in range(copies_for(num_outputs * size // 2)):
        codes = torch.randint(-2 ** 31, 2 ** 31, shape, dtype=torch.int32, device=DEVICE)
        if kind == "e4m3":
            codes &= ~0x08080808  # no NaN
        zeros = torch.randint(-8, 8, groups, device=DEVICE, dtype=torch.int8) if with_zeros else None
        scales = torch.rand(groups, device=DEVICE).half() / 100
        made.append(PackedWeight(kind, codes, scales, size, words, group, zeros,
                                 inputs="e4m3" if kind == "e4m3" else "int8" if kind == "int8" else None))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="*", default=["int4", "int4-zeros", "e4m3", "e4m3-blocks"], choices=FORMS)
    parser.add_argument("--models", nargs="*", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--rows", nargs="*", type=int, default=list(ROWS))
    parser.add_argument("--tune", action="store_true", help="try other tiles of the packed product")
    options = parser.parse_args()
    torch.manual_seed(0)
    table = Table()
    show = table.show
    show(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for model in options.models:
        if options.tune:
            for form in options.kinds:
                tune(form, model, options.rows, show)
            continue
        for num_outputs, size in SHAPES[model]:
            floats = time_floats(num_outputs, size, options.rows)
            for form in options.kinds:
                weights = weights_of(form, num_outputs, size)
                for num_rows in options.rows:
                    us = time_product(weights, num_rows)
                    theirs = ""
                    if form == "e4m3" and num_rows >= 16:
                        theirs = f"; torch's product {time_torch(weights, num_rows):.1f} us"
                    rate = weights[0].num_bytes / us / 1e6
                    show(f"{model} {num_outputs}x{size} {form:<12}{num_rows:>5} rows {us:>9.1f} us {rate:>6.2f} TB/s "
                         f"{100 * rate / CEILING_TB_S:>4.0f}% {floats[num_rows] / us:>6.2f}x bfloat16{theirs}")
                del weights
                torch.cuda.empty_cache()
    table.save("packed.txt")


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
        codes, scales = ops.round_rows(x, "e4m3", weight.size, weight.words)
        return torch._scaled_mm(codes.view(torch.float8_e4m3fn), weight.codes.view(torch.float8_e4m3fn).t(),
                                scale_a=scales, scale_b=weight.scales.float(), out_dtype=DTYPE)

    return median_us([partial(call, weight) for weight in weights])


def tune(form: str, model: str, rows: list[int], show: Callable[[str], None]) -> None:
    """The best tiles of each of the model's layers."""
    layers = [(shape, weights_of(form, *shape)) for shape in SHAPES[model]]
    for num_rows in rows:
        calls: list[list[Callable[[], object]]] = []
        for (_, size), weights in layers:
            x = torch.randn(num_rows, size, device=DEVICE, dtype=DTYPE)
            calls.append([partial(ops.packed_product, x, weight, None) for weight in weights])
        tiles = tiles_for(num_rows)
        start = time.monotonic()
        compile_all("packed_tile", tiles, [one for one, *_ in calls])
        compiled = time.monotonic()
        own = [median_us(layer) for layer in calls]
        times = [time_each("packed_tile", tiles, layer, replays=5) for layer in calls]
        show(f"{form} {model} {num_rows} rows (compiled in {compiled - start:.0f} s)")
        for place, (shape, weights) in enumerate(layers):
            best = sorted(times[place].items(), key=lambda timed: timed[1])[:4]
            rates = "; ".join(f"{_short(tile)} {us:.1f} us {weights[0].num_bytes / us / 1e6:.2f} TB/s"
                              for tile, us in best)
            show(f"  {shape[0]}x{shape[1]}: own {own[place]:.1f} us; {rates}")


def _short(tile: launch.PackedTile) -> str:
    return f"({tile.rows},{tile.outputs},{tile.num_splits},{tile.num_warps},{tile.num_stages})"


def tiles_for(num_rows: int) -> list[launch.PackedTile]:
    least = max(16, 1 << (num_rows - 1).bit_length())
    warps = [(16, 1), (32, 1), (32, 2), (64, 2), (64, 4), (128, 4), (128, 8)]
    return [launch.PackedTile(rows, outputs, splits, num_warps, stages)
            for rows, (outputs, num_warps), splits, stages in itertools.product(
                (8,) if num_rows <= 8 else (least,), warps, (1, 2, 4, 8), (2, 3, 4))
            if rows * outputs // num_warps <= 4096]


if __name__ == "__main__":
    main()
