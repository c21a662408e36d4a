"""The sum over the ranks of one host, for steps of few tokens: every rank reads all ranks' rows in their memory.

    out[row] = sum over ranks of x_rank[row]                       (float32, in the order of the ranks: alike on each)
    residual[row] += out[row];  out[row] = rms_norm(residual[row])  (where a norm follows)

A library's all-reduce takes several hops or channels to set up; here a program a row stores its row where peers can
see it, tells them so, waits until all of theirs is there, and adds up. One barrier a call: a row's place alternates
between two slots, and who comes to the same slot again has passed the barrier of the call between, which each peer
entered only after it had read. The epoch that this rests on is counted on the device, so that a CUDA graph may replay
the call. Peers must make the same calls in the same order, with as many rows. Called by `engine.execution.peers`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels import launch, pdl


@dataclass(frozen=True, slots=True)
class Peers:
    """Memory that all ranks of the group see, by address; of this rank, what only it sees."""

    rank: int
    size: int
    rows: torch.Tensor  # [ranks] int64: addresses of [2 slots, max_rows, max_columns] of `dtype`
    flags: torch.Tensor  # [ranks] int64: addresses of [ranks, max_rows] int32, zero at first
    epochs: torch.Tensor  # [max_rows] int32, zero at first: calls that each row took part in
    max_rows: int
    max_columns: int
    dtype: torch.dtype

    def take(self, x: torch.Tensor) -> bool:
        """Whether they have room for [rows, columns] of that type."""
        return (x.dim() == 2 and x.dtype == self.dtype and 0 < x.shape[0] <= self.max_rows
                and x.shape[1] <= self.max_columns and x.stride(1) == 1)


def all_reduce(x: torch.Tensor, peers: Peers) -> torch.Tensor:
    """[rows, columns] -> the same. `peers` must `take` it."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _call(x, x, x, out, 0.0, peers, norm=False)
    return out


def all_reduce_add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float,
                            peers: Peers) -> torch.Tensor:
    """[rows, columns] -> the norm of residual + the sum, which residual becomes."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _call(x, residual, weight, out, eps, peers, norm=True)
    return out


def _call(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float, peers: Peers,
          *, norm: bool) -> None:
    num_rows, size = x.shape
    block = triton.next_power_of_2(size)
    _one_shot[(num_rows,)](x, residual, weight, out, peers.rows, peers.flags, peers.epochs, size, x.stride(0),
                           residual.stride(0), eps, peers.rank, peers.max_rows, peers.max_columns, NUM_RANKS=peers.size,
                           NORM=norm, BLOCK=block, num_warps=launch.warps_for(block), **launch.early(x.device))


@triton.jit
def _at(address, ELEMENT: tl.constexpr):
    """The pointer whose value lies there. Allocations are aligned, which only a pointer argument would tell."""
    return tl.multiple_of(tl.load(address).to(tl.pointer_type(ELEMENT)), 16)


@triton.jit
def _one_shot(x, residual, weight, out, rows_of, flags_of, epochs, size, x_stride, residual_stride, eps, rank, max_rows,
              max_columns, NUM_RANKS: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    pdl.begin(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    epoch = tl.load(epochs + row) + 1
    place = ((epoch % 2) * max_rows + row) * max_columns + columns
    mine = _at(rows_of + rank, x.dtype.element_ty)
    tl.store(mine + place, tl.load(x + row * x_stride + columns, mask=inside, other=0.0), mask=inside)
    tl.debug_barrier()  # the whole row is stored before one thread says so
    for peer in tl.static_range(NUM_RANKS):
        flag = _at(flags_of + peer, tl.int32) + rank * max_rows + row
        tl.atomic_xchg(flag, epoch, sem="release", scope="sys")
    places = residual + row * residual_stride + columns
    if NORM:  # while peers take their time
        kept = tl.load(places, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    for peer in tl.static_range(NUM_RANKS):
        flag = _at(flags_of + rank, tl.int32) + peer * max_rows + row
        while tl.atomic_add(flag, 0, sem="acquire", scope="sys") < epoch:
            pass
    tl.debug_barrier()
    total = tl.zeros([BLOCK], tl.float32)
    for peer in tl.static_range(NUM_RANKS):
        theirs = _at(rows_of + peer, x.dtype.element_ty)
        total += tl.load(theirs + place, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        rounded = (total + kept).to(residual.dtype.element_ty)
        tl.store(places, rounded, mask=inside)
        value = rounded.to(tl.float32)
        scale = tl.rsqrt(tl.sum(value * value, axis=0) / size + eps)
        normed = (value * scale).to(out.dtype.element_ty).to(tl.float32)
        total = normed * factor
    tl.store(out + row * size + columns, total.to(out.dtype.element_ty), mask=inside)
    tl.store(epochs + row, epoch)
