"""Gated MLPs, of which each token goes through some, in Triton. Contract: kernels/reference/experts.py.

A *pair* is a token and one of its experts. `_sort` lists the pairs expert by expert, each expert's list padded to whole
tiles; a program of `_gate_up` and of `_down` then multiplies a tile of pairs by some rows of their expert's weights, so
that these are read once for all its pairs. Gale et al., "MegaBlocks" (2023), section 5, for the padding.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from quire.kernels import launch, pdl
from quire.kernels.activation import KINDS, gated

_PAIRS = 64  # looked at together
_SORTED_BY_ONE = 8192  # pairs: more are sorted by many programs


class Tiles(NamedTuple):
    pairs: torch.Tensor  # [tiles * rows] int32, -1 where there is none
    experts: torch.Tensor  # [tiles] int32, -1: no pairs


def gated_experts(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor,
                  kind: str) -> torch.Tensor:
    num_tokens, hidden = x.shape
    num_experts, inner = gate_up.shape[0], down.shape[2]
    num_pairs, chosen = ids.numel(), ids.shape[1]
    if not num_tokens:
        return torch.empty_like(x)
    assert x.stride(1) == 1
    assert gate_up.is_contiguous() and down.is_contiguous() and ids.is_contiguous() and weights.is_contiguous()
    tile = launch.experts_tile(x.device, x.element_size(), num_pairs // num_experts)
    tiles = _tiles(ids, num_experts, tile.rows)
    num_tiles = tiles.experts.shape[0]
    between = torch.empty((num_pairs, inner), dtype=x.dtype, device=x.device)
    out = torch.empty((num_pairs, hidden), dtype=x.dtype, device=x.device)
    sizes = {"ROWS": tile.rows, "OUTPUTS": tile.outputs, "DEPTH": tile.depth, "CHOSEN": chosen,
             "num_warps": tile.num_warps, "num_stages": tile.num_stages, **launch.early(x.device)}
    _gate_up[(triton.cdiv(inner, tile.outputs), num_tiles)](
        x, gate_up, between, *tiles, inner, hidden, x.stride(0), KIND=KINDS[kind], **sizes)
    _down[(triton.cdiv(hidden, tile.outputs), num_tiles)](between, down, weights, out, *tiles, hidden, inner, **sizes)
    parts = out.view(num_tokens, chosen, hidden)
    if not launch.is_batch_invariant():
        return parts.sum(1)
    total = parts[:, 0].float()
    for part in parts.unbind(1)[1:]:
        total += part
    return total.to(x.dtype)


def _tiles(ids: torch.Tensor, num_experts: int, rows: int) -> Tiles:
    num_pairs, device = ids.numel(), ids.device
    num_tiles = num_pairs // rows + min(num_experts, num_pairs)
    pairs = torch.full((num_tiles * rows,), -1, dtype=torch.int32, device=device)
    experts = torch.full((num_tiles,), -1, dtype=torch.int32, device=device)
    if num_pairs <= _SORTED_BY_ONE:
        _sort[(1,)](ids, pairs, experts, num_pairs, EXPERTS=num_experts, ROWS=rows, PAIRS=_PAIRS,
                    EXPERTS_PADDED=triton.next_power_of_2(num_experts), num_warps=8, **launch.early(device))
        return Tiles(pairs, experts)
    ordered, order = ids.flatten().sort(stable=True)
    counts = torch.zeros(num_experts, dtype=torch.int64, device=device)
    counts.scatter_add_(0, ordered.long(), torch.ones_like(order))
    tiles_of = (counts + rows - 1) // rows
    ends = tiles_of.cumsum(0)
    first = (ends - tiles_of) * rows - (counts.cumsum(0) - counts)  # of an expert's place, less its place in `ordered`
    pairs[first[ordered.long()] + torch.arange(num_pairs, device=device)] = order.int()
    found = torch.searchsorted(ends, torch.arange(num_tiles, device=device), right=True)
    experts.copy_(torch.where(found < num_experts, found, -1))
    return Tiles(pairs, experts)


@triton.jit(do_not_specialize=["num_pairs"])
def _sort(ids, pairs, tile_experts, num_pairs, EXPERTS: tl.constexpr, ROWS: tl.constexpr, PAIRS: tl.constexpr,
          EXPERTS_PADDED: tl.constexpr, EARLY: tl.constexpr):
    """A counting sort by one program."""
    pdl.begin(EARLY)
    experts = tl.arange(0, EXPERTS_PADDED)
    counts = tl.zeros([EXPERTS_PADDED], tl.int32)
    for start in range(0, num_pairs, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        expert = tl.load(ids + pair, mask=pair < num_pairs, other=-1)
        counts += tl.sum((expert[:, None] == experts[None, :]).to(tl.int32), axis=0)
    num_tiles = tl.cdiv(counts, ROWS)
    first = tl.cumsum(num_tiles, axis=0) - num_tiles
    most = tl.max(num_tiles, axis=0)
    for tile in range(most):
        tl.store(tile_experts + first + tile, experts, mask=(tile < num_tiles) & (experts < EXPERTS))
    place = first * ROWS  # of each expert's next pair
    for start in range(0, num_pairs, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        expert = tl.load(ids + pair, mask=pair < num_pairs, other=-1)
        here = (expert[:, None] == experts[None, :]).to(tl.int32)
        before = tl.cumsum(here, axis=0) - here
        target = tl.sum(here * (place[None, :] + before), axis=1)
        tl.store(pairs + target, pair, mask=pair < num_pairs)
        place += tl.sum(here, axis=0)


@triton.jit
def _gate_up(x, weight, out, pairs, experts, inner, hidden, x_stride, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
             DEPTH: tl.constexpr, CHOSEN: tl.constexpr, KIND: tl.constexpr, EARLY: tl.constexpr):
    pdl.begin(EARLY)
    tile = tl.program_id(1)
    expert = tl.load(experts + tile).to(tl.int64)
    if expert >= 0:
        pair = tl.load(pairs + tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
        depth = tl.arange(0, DEPTH)
        rows = x + (tl.maximum(pair, 0) // CHOSEN * x_stride)[:, None]
        real_outputs = tl.minimum(outputs, inner - 1).to(tl.int64)
        gate_rows = weight + (expert * 2 * inner + real_outputs)[:, None] * hidden
        up_rows = gate_rows + inner.to(tl.int64) * hidden
        gate = tl.zeros([ROWS, OUTPUTS], tl.float32)
        up = tl.zeros([ROWS, OUTPUTS], tl.float32)
        for start in range(0, hidden, DEPTH):
            columns = (start + depth)[None, :]
            inside = columns < hidden
            part = tl.load(rows + columns, mask=inside & (pair >= 0)[:, None], other=0.0)
            gate = tl.dot(part, tl.trans(tl.load(gate_rows + columns, mask=inside, other=0.0)), gate,
                          input_precision="ieee")
            up = tl.dot(part, tl.trans(tl.load(up_rows + columns, mask=inside, other=0.0)), up, input_precision="ieee")
        dtype = out.dtype.element_ty
        result = gated(gate.to(dtype), up.to(dtype), KIND).to(dtype)
        tl.store(out + pair[:, None] * inner + outputs[None, :], result,
                 mask=(pair >= 0)[:, None] & (outputs < inner)[None, :])


@triton.jit
def _down(x, weight, weights, out, pairs, experts, hidden, inner, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
          DEPTH: tl.constexpr, CHOSEN: tl.constexpr, EARLY: tl.constexpr):
    pdl.begin(EARLY)
    tile = tl.program_id(1)
    expert = tl.load(experts + tile).to(tl.int64)
    if expert >= 0:
        pair = tl.load(pairs + tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
        depth = tl.arange(0, DEPTH)
        rows = x + (tl.maximum(pair, 0) * inner)[:, None]
        real_outputs = tl.minimum(outputs, hidden - 1).to(tl.int64)
        w_rows = weight + (expert * hidden + real_outputs)[:, None] * inner
        acc = tl.zeros([ROWS, OUTPUTS], tl.float32)
        for start in range(0, inner, DEPTH):
            columns = (start + depth)[None, :]
            inside = columns < inner
            part = tl.load(rows + columns, mask=inside & (pair >= 0)[:, None], other=0.0)
            acc = tl.dot(part, tl.trans(tl.load(w_rows + columns, mask=inside, other=0.0)), acc, input_precision="ieee")
        dtype = out.dtype.element_ty
        scale = tl.load(weights + pair, mask=pair >= 0, other=0.0)
        result = acc.to(dtype).to(tl.float32) * scale[:, None]
        tl.store(out + pair[:, None] * hidden + outputs[None, :], result.to(dtype),
                 mask=(pair >= 0)[:, None] & (outputs < hidden)[None, :])
