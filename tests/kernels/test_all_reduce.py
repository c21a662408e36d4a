"""Ranks as processes that share memory, the kernel in Triton's interpreter: sums, norms, many calls in a row."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS, PACKET_ROWS, MAX_COLUMNS = 3, 4, 48

RANK = """
import ctypes, mmap, os, sys, time
os.environ["TRITON_INTERPRET"] = "1"
import torch
from quire.kernels import all_reduce as kernel, launch
from quire.kernels.reference import norms
torch.set_num_threads(1)
rank, size, path, programs, packet_rows, max_columns = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], *map(
    int, sys.argv[4:7])
dtype, tolerance = getattr(torch, sys.argv[7]), float(sys.argv[8])
launch.SUM_BLOCK = 128  # 2 rows
row_bytes, flag_bytes = kernel.FLAG_SLOTS.value * size * programs * 2 * max_columns * 4, size * programs * 4
packet_bytes = 2 * size * packet_rows * max_columns * 8
with open(path, "r+b") as file:
    memory = mmap.mmap(file.fileno(), 0)
base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
rows = torch.tensor([base + i * row_bytes for i in range(size)])
flags = torch.tensor([base + size * row_bytes + i * flag_bytes for i in range(size)])
packets = torch.tensor([base + size * (row_bytes + flag_bytes) + i * packet_bytes for i in range(size)])
stretches, calls = (torch.full((count,), 2 ** 31 - 3, dtype=torch.int32) for count in (programs, packet_rows))
max_rows = 23
peers = kernel.Peers(rank, size, rows, flags, packets, stretches, calls, max_rows, max_columns, dtype)
generator = torch.Generator().manual_seed(5)
for call, num_rows in enumerate((1, 8, max_rows, 4, 17, 3, 1, max_rows - 1, 4)):
    columns = max_columns - call % 3
    parts = torch.randn(size, num_rows, columns, generator=generator).to(dtype)
    residual, weight = (torch.randn(shape, generator=generator).to(dtype)
                        for shape in ((num_rows, columns), (columns,)))
    total = parts.float().sum(0)
    if rank == call % size:
        time.sleep(0.05)  # each of them is late now and then
    assert peers.take(parts[rank])
    if call % 3:
        out, right = kernel.all_reduce(parts[rank], peers), total.to(dtype)
    else:
        expected = residual.clone()
        right = norms.add_rms_norm(total, expected, weight, 1e-5)
        out = kernel.all_reduce_add_rms_norm(parts[rank], residual, weight, 1e-5, peers)
        torch.testing.assert_close(residual, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(out, right, atol=tolerance, rtol=tolerance)
assert stretches.max() < 0 and calls.min() < 0  # they wrapped
assert not peers.take(torch.zeros(max_rows + 1, 1)) and not peers.take(torch.zeros(1, max_columns + 1))
"""


@pytest.mark.parametrize(("size", "dtype", "tolerance"), [(2, "float16", "1e-2"), (3, "float32", "1e-5")])
def test_every_rank_gets_the_sum_of_all(size: int, dtype: str, tolerance: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    shared = tmp_path / "shared"
    shared.write_bytes(bytes(size * (4 * size * PROGRAMS * 2 * MAX_COLUMNS * 4 + size * PROGRAMS * 4
                                     + 2 * size * PACKET_ROWS * MAX_COLUMNS * 8) + mmap.PAGESIZE))
    numbers = [str(number) for number in (PROGRAMS, PACKET_ROWS, MAX_COLUMNS)]
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(size), str(shared), *numbers, dtype,
                               tolerance]) for rank in range(size)]
    assert [rank.wait(100) for rank in ranks] == [0] * size
