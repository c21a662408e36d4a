"""A step's reads of the request table in one kernel, its writes in another. Contract: kernels/reference/step.py.

Each would be a dozen kernels of torch's, and a step of a small model is not much longer than its launches. A program
takes a sequence with its blocks of one KV group, and some of the tokens.
"""

import torch
import triton
import triton.language as tl

from quire.kernels import launch, pdl
from quire.kernels.reference.step import Gathered

_TOKENS, _BLOCKS, _MAX_NUMBERS, _SEQS = 128, 512, 8, 128

# Numbers, and tensors cut out of larger ones, that differ from step to step: compiled once for any value and alignment.
_VARYING = ["rows", "context_lens", "token_rows", "positions", "num_seqs", "num_tokens", "num_blocks"]


def gather_step(rows: torch.Tensor, context_lens: torch.Tensor, token_rows: torch.Tensor, positions: torch.Tensor,
                tokens: torch.Tensor, block_tables: torch.Tensor, floats: torch.Tensor, top_k: torch.Tensor,
                seeds: torch.Tensor, block_size: int, deltas: torch.Tensor | None = None) -> Gathered:
    num_seqs, num_tokens = rows.shape[0], positions.shape[0]
    num_groups, _, num_blocks = block_tables.shape
    device = rows.device

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    out = Gathered(empty(num_tokens), empty(num_groups, num_tokens), empty(num_tokens),
                   empty(num_groups, num_seqs, num_blocks),
                   empty(floats.shape[0], num_seqs, dtype=torch.float32), empty(num_seqs),
                   empty(num_seqs, dtype=torch.int64))
    _gather[(max(num_seqs, triton.cdiv(num_tokens, _TOKENS)), num_groups)](
        rows, context_lens, token_rows, positions, tokens, block_tables, floats, top_k, seeds, deltas, *out, num_seqs,
        num_tokens, num_blocks, floats.shape[0], tokens.stride(0), *block_tables.stride()[:2], floats.stride(0),
        block_size, TOKENS=_TOKENS, BLOCKS=_BLOCKS, MAX_NUMBERS=_MAX_NUMBERS, num_warps=4, **launch.early(device))
    return out


def put_tokens(tokens: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor) -> None:
    _put[(triton.cdiv(rows.shape[0], _SEQS),)](tokens, rows, positions, token_ids, rows.shape[0], tokens.stride(0),
                                               SEQS=_SEQS, num_warps=4, **launch.early(rows.device))


@triton.jit(do_not_specialize=_VARYING)
def _gather(rows, context_lens, token_rows, positions, tokens, block_tables, floats, top_k, seeds, deltas, out_places,
            out_slots, out_tokens, out_tables, out_floats, out_top_k, out_seeds, num_seqs, num_tokens, num_blocks,
            num_numbers, tokens_stride, group_stride, tables_stride, floats_stride, block_size, TOKENS: tl.constexpr,
            BLOCKS: tl.constexpr, MAX_NUMBERS: tl.constexpr, EARLY: tl.constexpr):
    pdl.begin(EARLY)
    program, group = tl.program_id(0), tl.program_id(1)
    block_tables += group.to(tl.int64) * group_stride
    token = program * TOKENS + tl.arange(0, TOKENS)
    inside = token < num_tokens
    row = tl.load(token_rows + token, mask=inside, other=0).to(tl.int64)
    position = tl.load(positions + token, mask=inside, other=-1)
    place = tl.maximum(position, 0)
    block = tl.load(block_tables + row * tables_stride + place // block_size, mask=inside, other=0)
    slot = tl.where(position >= 0, block * block_size + place % block_size, -1)
    tl.store(out_slots + group * num_tokens + token, slot, mask=inside)
    if group == 0:
        turn = place
        if deltas is not None:
            turn = tl.where(position >= 0, place + tl.load(deltas + row, mask=inside, other=0), 0)
        tl.store(out_places + token, turn, mask=inside)
        tl.store(out_tokens + token, tl.load(tokens + row * tokens_stride + place, mask=inside, other=0), mask=inside)
    if program < num_seqs:
        own = tl.load(rows + program).to(tl.int64)
        out_table = out_tables + (group * num_seqs + program).to(tl.int64) * num_blocks
        # Of a context of 100 blocks, 100: a table of 131072 positions has 8192 columns.
        end = tl.cdiv(tl.load(context_lens + program), block_size)
        for start in range(0, end, BLOCKS):
            column = start + tl.arange(0, BLOCKS)
            here = column < end
            entry = tl.load(block_tables + own * tables_stride + column, mask=here, other=0)
            tl.store(out_table + column, entry, mask=here)
        if group == 0:
            number = tl.arange(0, MAX_NUMBERS)
            there = number < num_numbers
            value = tl.load(floats + number * floats_stride + own, mask=there, other=0.0)
            tl.store(out_floats + number * num_seqs + program, value, mask=there)
            tl.store(out_top_k + program, tl.load(top_k + own))
            tl.store(out_seeds + program, tl.load(seeds + own))


@triton.jit(do_not_specialize=["rows", "positions", "num_seqs"])
def _put(tokens, rows, positions, token_ids, num_seqs, tokens_stride, SEQS: tl.constexpr, EARLY: tl.constexpr):
    pdl.begin(EARLY)
    seq = tl.program_id(0) * SEQS + tl.arange(0, SEQS)
    inside = seq < num_seqs
    row = tl.load(rows + seq, mask=inside, other=0).to(tl.int64)
    position = tl.load(positions + seq, mask=inside, other=-1)
    token_id = tl.load(token_ids + seq, mask=inside, other=0)
    tl.store(tokens + row * tokens_stride + position, token_id, mask=inside & (position >= 0))
