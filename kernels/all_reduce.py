"""The sum over the ranks of one host: every rank stores its rows in the memory of all others, and sums what it got.

    out[row] = sum over ranks of x_rank[row]                       (float32, in the order of the ranks: alike on each)
    residual[row] += out[row];  out[row] = rms_norm(residual[row])  (where a norm follows)

A library's all-reduce takes several hops or channels to set up; here a program makes its rows known to the peers, waits
until theirs are there, and adds up. Two ways:
  packets, for few rows: each 4 bytes travel to every peer in one store with the epoch of the call, so that who sees
    them knows that they are there. Twice the bytes, one hop. A program for each row.
  flags, for more: a program stores a stretch of its rows in the peers' memory, and a flag says so. It stores the next
    stretch before it sums the one before, and says so after, so that rows travel meanwhile.
An epoch's rows lie in one of several slots, and who comes to the same slot again has seen an epoch of each peer that
the peer reached only after it had summed what lay there. The epochs that this rests on are counted on the device, so
that a CUDA graph may replay the call; they wrap. Peers must make the same calls in the same order, with as many rows.
Called by `quire.engine.execution.peers`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from quire.kernels import launch, pdl

FLAG_SLOTS = tl.constexpr(4)  # three would do; a power of two outlives the wrapping of epochs


@dataclass(frozen=True, slots=True)
class Peers:
    """Memory that all ranks of the group see, by address; of this rank, what only it sees."""

    rank: int
    size: int
    rows: torch.Tensor  # [ranks] int64: addresses of [FLAG_SLOTS, ranks, programs, rows of a stretch, max_columns]
    flags: torch.Tensor  # [ranks] int64: addresses of [ranks, programs] int32, zero at first
    packets: torch.Tensor  # [ranks] int64: addresses of [2 slots, ranks, packet_rows, words of a row] int64, zero
    stretches: torch.Tensor  # [programs] int32, zero at first: how many each program has summed by flags
    calls: torch.Tensor  # [packet_rows] int32, zero at first: those by packets that each row took part in
    max_rows: int  # of a call
    max_columns: int
    dtype: torch.dtype

    def take(self, x: torch.Tensor) -> bool:
        """Whether they have room for [rows, columns] of that type."""
        return (x.dim() == 2 and x.dtype == self.dtype and 0 < x.shape[0] <= self.max_rows
                and x.shape[1] <= self.max_columns and x.stride(1) == 1)

    def take_packets(self, x: torch.Tensor) -> bool:
        """Of what they take: whether its rows are few, and of whole words."""
        per_word = words_of(1, x.dtype)[1]
        return x.shape[0] <= len(self.calls) and x.shape[1] % per_word == 0 and x.stride(0) % per_word == 0


def words_of(columns: int, dtype: torch.dtype) -> tuple[int, int]:
    """The 4-byte words of so many columns; columns of a word."""
    per_word = max(1, 4 // dtype.itemsize)
    return -(-columns // per_word), per_word


def rows_of_stretch(max_columns: int) -> int:
    return max(1, launch.SUM_BLOCK // triton.next_power_of_2(max_columns))


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
    common = {"NUM_RANKS": peers.size, "NORM": norm, "BLOCK": block, **launch.early(x.device)}
    if peers.take_packets(x):
        max_words, per_word = words_of(peers.max_columns, x.dtype)
        _by_packets[(num_rows,)](x, residual, weight, out, peers.packets, peers.calls, size, x.stride(0),
                                 residual.stride(0), eps, peers.rank, len(peers.calls), max_words, PER_WORD=per_word,
                                 num_warps=launch.warps_for(block), **common)
    else:
        max_programs, rows = len(peers.stretches), rows_of_stretch(peers.max_columns)
        _by_flags[(min(num_rows, max_programs),)](
            x, residual, weight, out, peers.rows, peers.flags, peers.stretches, num_rows, size, x.stride(0),
            residual.stride(0), eps, peers.rank, max_programs, peers.max_columns, ROWS=rows,
            num_warps=launch.warps_for(rows * block), **common)


@triton.jit
def _at(address, like):
    """The pointer that lies there, of like's type. Allocations are aligned, which only an argument would tell."""
    return tl.multiple_of(tl.load(address).to(like.dtype), 16)


@triton.jit
def _finish(total, kept, factor, places, columns, real, out, row, size, eps, residual, NORM: tl.constexpr,
            AXIS: tl.constexpr):
    """Store rows' sums, or their norms with the residual that they are added to. AXIS: that of the columns."""
    if NORM:
        rounded = (total + kept).to(residual.dtype.element_ty)
        tl.store(places, rounded, mask=real)
        value = rounded.to(tl.float32)
        scale = tl.rsqrt(tl.sum(value * value, axis=AXIS, keep_dims=True) / size + eps)
        normed = (value * scale).to(out.dtype.element_ty).to(tl.float32)
        total = normed * factor
    tl.store(out + row * size + columns, total.to(out.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["num_rows"])
def _by_flags(x, residual, weight, out, rows_of, flags_of, stretches, num_rows, size, x_stride, residual_stride, eps,
              rank, max_programs, max_columns, NUM_RANKS: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr,
              ROWS: tl.constexpr, EARLY: tl.constexpr):
    """A program's rows are each num_programs-th; ROWS of them are a stretch."""
    pdl.begin(EARLY)
    program = tl.program_id(0).to(tl.int64)  # its rows may lie far apart
    columns = tl.arange(0, BLOCK)[None, :]
    inside = columns < size
    factor = tl.load(weight + columns, mask=inside & NORM, other=0.0).to(tl.float32)
    epoch = tl.load(stretches + program)
    _put(x, rows_of, program, epoch + 1, num_rows, x_stride, rank, max_programs, max_columns, columns, inside,
         NUM_RANKS, ROWS)
    _say(flags_of, stretches, epoch + 1, rank, max_programs, NUM_RANKS)
    for start in range(program, num_rows, ROWS * tl.num_programs(0)):
        following = start + ROWS * tl.num_programs(0)
        if following < num_rows:
            _put(x, rows_of, following, epoch + 2, num_rows, x_stride, rank, max_programs, max_columns, columns, inside,
                 NUM_RANKS, ROWS)
        epoch += 1
        for peer in tl.static_range(NUM_RANKS):
            if peer != rank:
                flag = _at(flags_of + rank, stretches) + peer * max_programs + program
                while tl.atomic_add(flag, 0, sem="acquire", scope="sys") - epoch < 0:  # it may be ahead
                    pass
        tl.debug_barrier()
        row = start + tl.arange(0, ROWS)[:, None] * tl.num_programs(0)
        real = inside & (row < num_rows)
        places = residual + row * residual_stride + columns
        kept = tl.load(places, mask=real & NORM, other=0.0).to(tl.float32)
        total = tl.zeros([ROWS, BLOCK], tl.float32)
        for peer in tl.static_range(NUM_RANKS):
            if peer == rank:
                total += tl.load(x + row * x_stride + columns, mask=real, other=0.0).to(tl.float32)
            else:
                place = _place(epoch, peer, program, NUM_RANKS, max_programs, ROWS) * max_columns + columns
                total += tl.load(_at(rows_of + rank, x) + place, mask=real, other=0.0).to(tl.float32)
        _finish(total, kept, factor, places, columns, real, out, row, size, eps, residual, NORM, 1)
        if following < num_rows:
            _say(flags_of, stretches, epoch + 1, rank, max_programs, NUM_RANKS)
    tl.store(stretches + program, epoch)


@triton.jit
def _put(x, rows_of, start, epoch, num_rows, x_stride, rank, max_programs, max_columns, columns, inside,
         NUM_RANKS: tl.constexpr, ROWS: tl.constexpr):
    """Store the stretch from row `start` on in the peers' memory."""
    row = start + tl.arange(0, ROWS)[:, None] * tl.num_programs(0)
    real = inside & (row < num_rows)
    value = tl.load(x + row * x_stride + columns, mask=real, other=0.0)
    place = _place(epoch, rank, tl.program_id(0).to(tl.int64), NUM_RANKS, max_programs, ROWS) * max_columns + columns
    for peer in tl.static_range(NUM_RANKS):
        if peer != rank:
            tl.store(_at(rows_of + peer, x) + place, value, mask=real)


@triton.jit
def _say(flags_of, stretches, epoch, rank, max_programs, NUM_RANKS: tl.constexpr):
    """That this program's stretch is there."""
    tl.debug_barrier()  # all of it is stored before one thread says so
    for peer in tl.static_range(NUM_RANKS):
        if peer != rank:
            flag = _at(flags_of + peer, stretches) + rank * max_programs + tl.program_id(0)
            tl.atomic_xchg(flag, epoch, sem="release", scope="sys")


@triton.jit
def _place(epoch, rank, program, NUM_RANKS: tl.constexpr, max_programs, ROWS: tl.constexpr):
    """Of a rank's stretch for this program: the rows in the memory of any peer."""
    first = (((epoch & (FLAG_SLOTS - 1)) * NUM_RANKS + rank) * max_programs + program) * ROWS
    return first + tl.arange(0, ROWS)[:, None]


@triton.jit
def _by_packets(x, residual, weight, out, packets_of, calls, size, x_stride, residual_stride, eps, rank, max_rows,
                max_words, PER_WORD: tl.constexpr, NUM_RANKS: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr,
                EARLY: tl.constexpr):
    pdl.begin(EARLY)
    row = tl.program_id(0).to(tl.int64)
    words = tl.arange(0, BLOCK // PER_WORD)
    real = words < size // PER_WORD
    epoch = tl.load(calls + row) + 1
    first = (epoch & 1) * NUM_RANKS  # of the slot's ranks
    source = (x + row * x_stride).to(calls.dtype)  # as words
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
    _finish(total, kept, factor, places, columns, inside, out, row, size, eps, residual, NORM, 0)
    tl.store(calls + row, epoch)
