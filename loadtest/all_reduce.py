"""`python -m quire.loadtest.all_reduce`: sums over the GPUs of this host by our kernels and by NCCL, side by side.

For each number of rows: microseconds of one call inside a CUDA graph of many, alone and with the norm that follows it
in a model, by packets, by flags and by NCCL. Results are checked before they are timed. Decides
`quire.engine.execution.peers.LIMITS`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

ROWS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 256, 512, 768, 1024, 2048, 8192, 16384)
CALLS = 50  # in a graph
REPLAYS = 10


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m quire.loadtest.all_reduce", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2, help="GPUs")
    parser.add_argument("--hidden-size", type=int, default=5120)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--meeting", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        return measure(args.rank, args.size, args.hidden_size, args.meeting)
    with tempfile.TemporaryDirectory() as directory:
        ranks = [subprocess.Popen([sys.executable, "-m", "quire.loadtest.all_reduce", *sys.argv[1:],
                                   "--rank", str(rank),
                                   "--meeting", f"{directory}/store"]) for rank in range(args.size)]
        return max(rank.wait() for rank in ranks)


def measure(rank: int, size: int, hidden_size: int, meeting: str) -> int:
    import torch
    import torch.distributed as dist

    from quire.engine.execution import peers as limits
    from quire.engine.execution.collectives import NcclCollectives

    torch.cuda.set_device(rank)
    device = torch.device("cuda", rank)
    store = dist.FileStore(meeting, size)  # type: ignore[attr-defined]
    dist.init_process_group("nccl", store=store, rank=rank, world_size=size)
    # As far as they can go, to see how far they should.
    limits.LIMITS[size] = 256 * hidden_size * 2, max(ROWS) * hidden_size * 2
    peers = limits.connect(store, "bench", rank, size, hidden_size, torch.bfloat16, device)
    assert peers is not None, "no peers: the log says why"
    group = dist.new_group(list(range(size)))
    by_flags = replace(peers, calls=peers.calls[:0])
    ways = {"packets": NcclCollectives(group, peers), "flags": NcclCollectives(group, by_flags),
            "nccl": NcclCollectives(group, None)}
    weight = torch.ones(hidden_size, dtype=torch.bfloat16, device=device)
    if rank == 0:
        print(f"{size} x {torch.cuda.get_device_name()}, hidden size {hidden_size}, bfloat16; microseconds a call, and "
              f"with the norm\n rows" + "".join(f"{name:>17}" for name in ways), flush=True)
    for num_rows in ROWS:
        generator = torch.Generator(device).manual_seed(num_rows)
        parts = torch.randn(size, num_rows, hidden_size, generator=generator, device=device).bfloat16()
        right = parts.float().sum(0)
        mine, residual = parts[rank] * 1e-3, torch.zeros_like(parts[rank])
        line = f"{num_rows:5}"
        for name, way in ways.items():
            if name == "packets" and num_rows > len(peers.calls):
                line += " " * 17
                continue
            wrong = (way.all_reduce(parts[rank].clone()).float() - right).abs().max() / right.abs().max()
            assert wrong < 0.01, (num_rows, name, wrong)
            times = _microseconds(way.all_reduce, mine), _microseconds(way.add_rms_norm, mine, residual, weight, 1e-5)
            line += f"{times[0]:10.2f}{times[1]:7.2f}"
        if rank == 0:
            print(line, flush=True)
    dist.destroy_process_group()
    return 0


def _microseconds(function: Callable[..., object], *arguments: object) -> float:
    import torch
    import torch.distributed as dist

    function(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(CALLS):
            function(*arguments)
    graph.replay()
    torch.cuda.synchronize()
    dist.barrier()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(REPLAYS):
        graph.replay()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / (CALLS * REPLAYS) * 1e6


if __name__ == "__main__":
    sys.exit(main())
