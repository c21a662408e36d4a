"""`quire simulate`: replays requests through the real scheduler with a cost model of a GPU, and prints what came of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from quire.app.command_parser import CommandParser
from quire.engine.config import DTYPES, GPU_STEP_TOKENS, EngineArgs, SchedulerConfig, gpu_rows, kv_type
from quire.engine.errors import ConfigError, QuireError
from quire.engine.model_config import ModelConfig
from quire.engine.weights.locate import resolve_model
from quire.engine.weights.size import ITEM_BYTES, kv_block_bytes, weight_bytes
from quire.loadtest import workloads
from quire.loadtest.arguments import add_engine_flags, count, engine_flags, positive, share, writable
from quire.loadtest.simulate import trace
from quire.loadtest.simulate.cost_model import TYPICAL, CostModel, Reached
from quire.loadtest.simulate.figures import figures, lines
from quire.loadtest.simulate.gpus import GPUS, Gpu
from quire.loadtest.simulate.replay import Replay


@dataclass(frozen=True, slots=True)
class Plant:
    """An engine with a GPU of its own, settled."""

    scheduler: SchedulerConfig
    cost: CostModel
    num_weight_bytes: int


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except QuireError as error:
        for problem in str(error).splitlines():
            print(f"quire simulate: {problem}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="quire simulate", description=(
        "How a server would fare under a load: the engine's own scheduler with a formula for a GPU. No GPU is needed."))
    parser.add_argument("--model", required=True, help="as of quire serve; a directory with config.json is enough "
                                                       "with --load-format dummy")
    parser.add_argument("--load-format", default="auto", help="as of quire serve")
    parser.add_argument("--gpu", required=True, choices=GPUS, help="whose data sheet counts")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--trace", metavar="FILE", help="requests, a line each: {\"arrival_s\": 0.5, "
                        "\"prompt_tokens\": 900, \"output_tokens\": 200}, and \"prefix\", \"prefix_tokens\", "
                        "\"priority\", \"key\" where it is so")
    source.add_argument("--workload", choices=sorted(workloads.load()), help="lengths of a workload of quire bench")
    parser.add_argument("--rate", type=positive, default=1.0, help="of --workload: requests a second (1)")
    parser.add_argument("--requests", type=count, default=1000, help="of --workload: how many (1000)")
    parser.add_argument("--bandwidth-reached", type=share, default=TYPICAL.bandwidth, metavar="SHARE",
                        help=f"of the GPU's bandwidth ({TYPICAL.bandwidth})")
    parser.add_argument("--products-reached", type=share, default=TYPICAL.products, metavar="SHARE",
                        help=f"of the GPU's products a second ({TYPICAL.products})")
    parser.add_argument("--layer-overhead-us", type=positive, default=1e6 * TYPICAL.lost_s, metavar="US",
                        help=f"lost in each layer at each step ({1e6 * TYPICAL.lost_s:g})")
    parser.add_argument("--json", type=writable, metavar="FILE", help="write the figures there too")
    add_engine_flags(parser)
    return parser


def _run(args: argparse.Namespace) -> int:
    engine = EngineArgs.of({"model": args.model, "load_format": args.load_format, **engine_flags(args)})
    reached = Reached(args.bandwidth_reached, args.products_reached, args.layer_overhead_us / 1e6)
    plant = build(engine, GPUS[args.gpu], reached)
    scheduler = plant.scheduler
    print(f"{args.gpu}: weights {plant.num_weight_bytes / 2**30:.1f} GiB, KV cache {scheduler.num_blocks} blocks of "
          f"{scheduler.block_size} tokens; at most {scheduler.max_num_seqs} at once, "
          f"{scheduler.max_num_batched_tokens} tokens a step")
    arrivals: Iterable[trace.Arrival] = (trace.read(args.trace) if args.trace is not None else
                                         trace.poisson(args.workload, args.rate, args.requests))
    began = time.perf_counter()
    replay = Replay(scheduler, plant.cost, max_queued_requests=engine.max_queued_requests,
                    max_queued_tokens=engine.max_queued_tokens)
    gc.disable()  # nothing here is a cycle, and looking for some among a million objects takes a fifth of the time
    try:
        found = figures(replay.run(arrivals))
    finally:
        gc.enable()
    print("\n".join(lines(found)))
    print(f"simulated in {time.perf_counter() - began:.1f} s")
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def build(args: EngineArgs, gpu: Gpu, reached: Reached) -> Plant:
    """Raises ConfigError for a model that does not fit the GPU, and for what is not simulated."""
    if args.num_ranks * args.data_parallel_size > 1:
        raise ConfigError("--tensor-parallel-size, --pipeline-parallel-size, --data-parallel-size: one engine with one "
                          "GPU is simulated; of several engines give each its share of the requests")
    model = resolve_model(args)
    dtype = model.dtype if args.dtype == "auto" else DTYPES[args.dtype]
    num_weight_bytes = weight_bytes(model, dtype, dummy=args.load_format == "dummy")
    scheduler = SchedulerConfig(
        num_blocks=_num_blocks(args, model, dtype, gpu, num_weight_bytes), block_size=args.block_size,
        max_num_seqs=args.max_num_seqs or gpu_rows(gpu.memory_bytes),
        max_num_batched_tokens=args.max_num_batched_tokens or GPU_STEP_TOKENS,
        max_model_len=args.model_len(model), enable_prefix_caching=args.enable_prefix_caching,
        windows=model.kv_groups.windows)
    num_weights = weight_bytes(model, dtype, dummy=args.load_format == "dummy", packed=False) / ITEM_BYTES[dtype]
    cost = CostModel(model, dtype, gpu, num_weight_bytes, num_weights, reached, kv_type(args, dtype))
    return Plant(scheduler, cost, num_weight_bytes)


def _num_blocks(args: EngineArgs, model: ModelConfig, dtype: str, gpu: Gpu, num_weight_bytes: int) -> int:
    if args.num_gpu_blocks_override is not None:
        return args.num_gpu_blocks_override
    left = args.kv_cache_memory_bytes
    if left is None:
        left = int(gpu.memory_bytes * args.gpu_memory_utilization) - num_weight_bytes
    num_blocks = left // kv_block_bytes(model, kv_type(args, dtype), args.block_size)
    if num_blocks < 1:
        raise ConfigError(f"--gpu: the weights of {args.model} take {num_weight_bytes / 2**30:.1f} GiB of "
                          f"{gpu.memory_bytes / 2**30:.1f} GiB, which leaves no room for KV cache; take a larger "
                          "GPU, a smaller model, or another --dtype")
    return num_blocks
