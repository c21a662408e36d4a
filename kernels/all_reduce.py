"""The sum over the ranks of one host, for steps of few tokens: every rank reads all ranks' rows in their memory.

    out[row] = sum over ranks of x_rank[row]                       (float32, in the order of the ranks: alike on each)
    residual[row] += out[row];  out[row] = rms_norm(residual[row])  (where a norm follows)

A library's all-reduce takes several hops or channels to set up; here a program a row makes its row known to the peers,
waits until all of theirs is there, and adds up. Two ways:
  packets, for few rows: each 4 bytes travel to every peer in one store with the epoch of the call, so that who sees
    them knows that they are there. Twice the bytes, one hop.
  flags, for more: the row is stored where peers read it, and a flag says so.
A row's place alternates between two slots, and who comes to the same slot again has seen the call between, which each
peer made only after it had read. The epoch that this rests on is counted on the device, for each row, so that a CUDA
graph may replay the call; it wraps. Peers must make the same calls in the same order, with as many rows. Called by
`engine.execution.peers`.
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
    packets: torch.Tensor  # [ranks] int64: addresses of [2 slots, ranks, packet_rows, words of a row] int64, zero
    epochs: torch.Tensor  # [2, max_rows] int32, zero at first: calls by flags, by packets, that each row took part in
    max_rows: int
    packet_rows: int  # calls of more rows go by flags
    max_columns: int
    dtype: torch.dtype

    def take(self, x: torch.Tensor) -> bool:
        """Whether they have room for [rows, columns] of that type."""
        return (x.dim() == 2 and x.dtype == self.dtype and 0 < x.shape[0] <= self.max_rows
                and x.shape[1] <= self.max_columns and x.stride(1) == 1)

    def take_packets(self, x: torch.Tensor) -> bool:
        """Of what they take: whether its rows are few, and of whole words."""
        per_word = words_of(1, x.dtype)[1]
        return x.shape[0] <= self.packet_rows and x.shape[1] % per_word == 0 and x.stride(0) % per_word == 0


def words_of(columns: int, dtype: torch.dtype) -> tuple[int, int]:
    """The 4-byte words of so many columns; columns of a word."""
    per_word = max(1, 4 // dtype.itemsize)
    return -(-columns // per_word), per_word


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
    common = {"NUM_RANKS": peers.size, "NORM": norm, "BLOCK": block, "num_warps": launch.warps_for(block),
              **launch.early(x.device)}
    if peers.take_packets(x):
        max_words, per_word = words_of(peers.max_columns, x.dtype)
        _by_packets[(num_rows,)](x, residual, weight, out, peers.packets, peers.epochs[1], size, x.stride(0),
                                 residual.stride(0), eps, peers.rank, peers.packet_rows, max_words, PER_WORD=per_word,
                                 **common)
    else:
        _by_flags[(num_rows,)](x, residual, weight, out, peers.rows, peers.flags, peers.epochs[0], size, x.stride(0),
                               residual.stride(0), eps, peers.rank, peers.max_rows, peers.max_columns, **common)


@triton.jit
def _at(address, like):
    """The pointer that lies there, of like's type. Allocations are aligned, which only an argument would tell."""
    return tl.multiple_of(tl.load(address).to(like.dtype), 16)


@triton.jit
def _finish(total, kept, factor, places, columns, inside, out, row, size, eps, residual, NORM: tl.constexpr):
    """Store the row's sum, or its norm with the residual that it is added to."""
    if NORM:
        rounded = (total + kept).to(residual.dtype.element_ty)
        tl.store(places, rounded, mask=inside)
        value = rounded.to(tl.float32)
        scale = tl.rsqrt(tl.sum(value * value, axis=0) / size + eps)
        normed = (value * scale).to(out.dtype.element_ty).to(tl.float32)
        total = normed * factor
    tl.store(out + row * size + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _by_flags(x, residual, weight, out, rows_of, flags_of, epochs, size, x_stride, residual_stride, eps, rank, max_rows,
              max_columns, NUM_RANKS: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    pdl.begin(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    epoch = tl.load(epochs + row) + 1
    place = ((epoch & 1) * max_rows + row) * max_columns + columns
    mine = _at(rows_of + rank, x)
    tl.store(mine + place, tl.load(x + row * x_stride + columns, mask=inside, other=0.0), mask=inside)
    tl.debug_barrier()  # the whole row is stored before one thread says so
    for peer in tl.static_range(NUM_RANKS):
        flag = _at(flags_of + peer, epochs) + rank * max_rows + row
        tl.atomic_xchg(flag, epoch, sem="release", scope="sys")
    places = residual + row * residual_stride + columns
    # While peers take their time.
    kept = tl.load(places, mask=inside & NORM, other=0.0).to(tl.float32)
    factor = tl.load(weight + columns, mask=inside & NORM, other=0.0).to(tl.float32)
    for peer in tl.static_range(NUM_RANKS):
        flag = _at(flags_of + rank, epochs) + peer * max_rows + row
        while tl.atomic_add(flag, 0, sem="acquire", scope="sys") - epoch < 0:  # it may be one call ahead
            pass
    tl.debug_barrier()
    total = tl.zeros([BLOCK], tl.float32)
    for peer in tl.static_range(NUM_RANKS):
        theirs = _at(rows_of + peer, x)
        total += tl.load(theirs + place, mask=inside, other=0.0).to(tl.float32)
    _finish(total, kept, factor, places, columns, inside, out, row, size, eps, residual, NORM)
    tl.store(epochs + row, epoch)


@triton.jit
def _by_packets(x, residual, weight, out, packets_of, epochs, size, x_stride, residual_stride, eps, rank, max_rows,
                max_words, PER_WORD: tl.constexpr, NUM_RANKS: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr,
                EARLY: tl.constexpr):
    pdl.begin(EARLY)
    row = tl.program_id(0).to(tl.int64)
    words = tl.arange(0, BLOCK // PER_WORD)
    real = words < size // PER_WORD
    epoch = tl.load(epochs + row) + 1
    first = (epoch & 1) * NUM_RANKS  # of the slot's ranks
    source = (x + row * x_stride).to(epochs.dtype)  # as words
    word = tl.load(source + words, mask=real, other=0)
    packet = (epoch.to(tl.int64) << 32) | (word.to(tl.int64) & 0xFFFFFFFF)
    for peer in tl.static_range(NUM_RANKS):
        theirs = _at(packets_of + peer, packets_of)
        tl.store(theirs + ((first + rank) * max_rows + row) * max_words + words, packet, mask=real)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    places = residual + row * residual_stride + columns
    kept = tl.load(places, mask=inside & NORM, other=0.0).to(tl.float32)
    factor = tl.load(weight + columns, mask=inside & NORM, other=0.0).to(tl.float32)
    mine = _at(packets_of + rank, packets_of)
    low = tl.zeros([BLOCK // PER_WORD], tl.float32)
    high = tl.zeros([BLOCK // PER_WORD], tl.float32)
    for peer in tl.static_range(NUM_RANKS):
        place = mine + ((first + peer) * max_rows + row) * max_words + words
        packet = tl.load(place, mask=real, other=0, volatile=True)
        while tl.max((real & ((packet >> 32).to(tl.int32) != epoch)).to(tl.int32), axis=0) > 0:
            packet = tl.load(place, mask=real, other=0, volatile=True)
        if PER_WORD == 2:
            low += (packet & 0xFFFF).to(tl.int16).to(x.dtype.element_ty, bitcast=True).to(tl.float32)
            high += ((packet >> 16) & 0xFFFF).to(tl.int16).to(x.dtype.element_ty, bitcast=True).to(tl.float32)
        else:
            low += (packet & 0xFFFFFFFF).to(tl.int32).to(x.dtype.element_ty, bitcast=True).to(tl.float32)
    total = tl.interleave(low, high) if PER_WORD == 2 else low
    _finish(total, kept, factor, places, columns, inside, out, row, size, eps, residual, NORM)
    tl.store(epochs + row, epoch)
