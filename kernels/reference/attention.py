"""Causal attention over a paged KV cache, as batched products on gathered blocks. Called by quire.engine.attention.

What depends on the step and not on the layer (which blocks, which masks) is worked out at the step's first layer and
kept in `inputs.scratch`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from quire.kernels.attention_spec import AttentionSpec, Fresh
from quire.kernels.reference import kv_codes
from quire.kernels.reference.rotary import places_of, turn_and_write, turns_of

_T = TypeVar("_T")


def paged_attention(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, inputs: Any, spec: AttentionSpec,
                    fresh: Fresh | None = None) -> torch.Tensor:
    """out = softmax(cap(scale * q K^T) + bias + mask) V, each query head with the K and V of its group's KV head.

    q: [tokens, heads, head_dim], last two dimensions contiguous; k_cache, v_cache: [blocks, kv_heads, block_size,
    head_dim]; out: [tokens, heads, head_dim] of q.dtype, contiguous. Sequence s has the query tokens query_starts[s] ..
    query_starts[s + 1] - 1; the last sees all context_lens[s] positions, the one before it one less, and so on.
    Position p lies in block block_tables[s, p // block_size]. context_lens 0 is a padded sequence: zeros.
    Scores and sums in float32.

    With spec.window, the query at position p sees the keys k > p - window alone. Blocks that no query of the step sees
    any of may hold anything by now, and so may their entries in the block table: neither is read.
    With spec.softcap, cap(x) = softcap * tanh(x / softcap). With spec.slopes, bias = slopes[head] * (k - p), which
    differs from slopes[head] * k by what a softmax does not see. With spec.sinks, each softmax has one more score,
    sinks[head], whose weight counts in the sum and multiplies nothing.

    Caches in 8 bits hold numbers of K / k_scale and V / v_scale, as reference/kv_codes.py says; queries and weights are
    rounded to float16 at most, and no product is of 8 bits. All of a step's queries see what the cache holds, also of
    the step's own tokens: in which steps a prompt is computed changes nothing but orders of sums.

    `fresh` is (k, v, rotary) of this step's tokens, as rotary_and_cache takes them: that is carried out first, for
    all tokens. q, k and v are worthless afterwards.
    """
    if fresh is not None:
        k, v, rotary = fresh
        turned = _once(inputs, f"turns by {id(rotary and rotary.table)}", lambda: turns_of(rotary, inputs.positions))
        placed = _once(inputs, "places", lambda: places_of(inputs.slots, k_cache))
        turn_and_write(q, k, v, rotary, turned, placed, k_cache, v_cache, spec.k_scale, spec.v_scale)
    is_coded = kv_codes.is_coded(k_cache)
    if is_coded:
        spec = replace(spec, scale=spec.scale * spec.k_scale)
    _, num_kv_heads, block_size, _ = k_cache.shape
    plan = _once(inputs, f"{num_kv_heads} heads, window {spec.window}",
                 lambda: _plan(inputs, num_kv_heads, block_size, spec.window, q.dtype))
    out = torch.empty(q.shape, dtype=q.dtype)
    for padded in plan.padded:
        out[padded] = 0
    for decode in plan.decodes:
        _decode(q, k_cache, v_cache, decode, spec, out)
    for prefill in plan.prefills:
        _prefill(q, k_cache, v_cache, prefill, spec, out)
    return out.mul_(spec.v_scale) if is_coded and spec.v_scale != 1 else out


def _once(inputs: Any, name: str, make: Callable[[], _T]) -> _T:
    """What is alike in many layers of a step, made by the first of them."""
    key = f"{__name__}, {name}"
    if key not in inputs.scratch:
        inputs.scratch[key] = make()
    found: _T = inputs.scratch[key]
    return found


@dataclass(slots=True)
class _Decode:
    """Sequences of one query token each and of similar length."""

    tokens: slice | torch.Tensor  # their places in the flat batch
    index: torch.Tensor  # [seqs * kv_heads, blocks], places in the cache seen as [blocks * kv_heads, ...]
    mask: torch.Tensor  # [seqs * kv_heads, 1, gathered] float32, 0 or -inf
    distance: torch.Tensor  # [seqs, 1, gathered], key position - query position


@dataclass(slots=True)
class _Prefill:
    """One sequence of any number of query tokens."""

    tokens: slice
    index: torch.Tensor  # [kv_heads, blocks]
    seen: slice  # of what is gathered: from the first position that any query sees
    mask: torch.Tensor | None  # [queries, seen], 0 or -inf; None: plain causal

    def distance(self) -> torch.Tensor:
        """[queries, seen], key position - query position"""
        num_queries, num_seen = self.tokens.stop - self.tokens.start, self.seen.stop - self.seen.start
        return torch.arange(num_seen) - torch.arange(num_seen - num_queries, num_seen).unsqueeze(1)


@dataclass(slots=True)
class _Plan:
    padded: list[slice]
    decodes: list[_Decode]
    prefills: list[_Prefill]


def _plan(inputs: Any, num_kv_heads: int, block_size: int, window: int | None, dtype: torch.dtype) -> _Plan:
    contexts = inputs.host_context_lens or inputs.context_lens.tolist()
    queries = inputs.host_query_lens or inputs.query_starts.diff().tolist()
    plan = _Plan([], [], [])
    decodes = []
    start = 0
    for place, (num_queries, context) in enumerate(zip(queries, contexts)):
        tokens = slice(start, start + num_queries)
        start += num_queries
        if context == 0:
            plan.padded.append(tokens)
        elif place < inputs.num_decodes:
            decodes.append(place)
        else:
            prefill = _prefill_plan(tokens, context, inputs.block_tables[place: place + 1], num_kv_heads, block_size,
                                    window)
            if num_queries not in (1, context) or (window is not None and num_queries > 1 and window < context):
                prefill.mask = _mask(prefill.distance(), window).to(dtype)
            plan.prefills.append(prefill)
    lengths = [context - _first_seen(context, 1, window) for context in contexts]
    for places in _of_similar_length(decodes, lengths, block_size):
        plan.decodes.append(_decode_plan(inputs, places, contexts, num_kv_heads, block_size, window))
    return plan


def _first_seen(context: int, num_queries: int, window: int | None) -> int:
    """The first position that any of a sequence's queries sees."""
    return 0 if window is None else max(context - num_queries - window + 1, 0)


def _of_similar_length(places: list[int], lengths: list[int], block_size: int) -> list[list[int]]:
    """Cut into groups that waste little when each is padded to its longest; in order where one group will do."""
    def longest_of(group: list[int]) -> int:
        return max(lengths[p] for p in group)

    def waste(group: list[int]) -> float:
        return longest_of(group) * len(group) / sum(lengths[p] for p in group)

    if not places:
        return []
    if longest_of(places) <= 4 * block_size or waste(places) < 1.3:
        return [places]
    ordered = sorted(places, key=lengths.__getitem__, reverse=True)
    groups: list[list[int]] = [[]]
    for place in ordered:
        if groups[-1] and lengths[groups[-1][0]] > max(1.5 * lengths[place], 4 * block_size):
            groups.append([])
        groups[-1].append(place)
    return groups


def _decode_plan(inputs: Any, places: list[int], contexts: list[int], num_kv_heads: int, block_size: int,
                 window: int | None) -> _Decode:
    if places == list(range(places[0], places[0] + len(places))):
        tokens: slice | torch.Tensor = slice(places[0], places[0] + len(places))
    else:
        tokens = torch.tensor(places)
    lens = torch.tensor([contexts[p] for p in places]).unsqueeze(1)
    first = torch.tensor([_first_seen(contexts[p], 1, window) // block_size for p in places]).unsqueeze(1)
    num_blocks = int((-(-lens // block_size) - first).max())
    tables = inputs.block_tables[tokens]
    if int(first.max()):
        columns = (first + torch.arange(num_blocks)).clamp_(max=tables.shape[1] - 1)
        tables = tables.gather(1, columns)
    distance = first * block_size + torch.arange(num_blocks * block_size) - (lens - 1)
    mask = _mask(distance, window).repeat_interleave(num_kv_heads, dim=0)
    return _Decode(tokens, _index(tables, num_blocks, num_kv_heads), mask.unsqueeze(1), distance.unsqueeze(1))


def _prefill_plan(tokens: slice, context: int, block_table: torch.Tensor, num_kv_heads: int, block_size: int,
                  window: int | None) -> _Prefill:
    num_queries = tokens.stop - tokens.start
    first = _first_seen(context, num_queries, window)
    first_block = first // block_size
    index = _index(block_table[:, first_block:], -(-context // block_size) - first_block, num_kv_heads)
    before = first_block * block_size
    return _Prefill(tokens, index, slice(first - before, context - before), None)


def _mask(distance: torch.Tensor, window: int | None) -> torch.Tensor:
    hidden = distance > 0 if window is None else (distance > 0) | (distance <= -window)
    return torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)


def _index(block_tables: torch.Tensor, num_blocks: int, num_kv_heads: int) -> torch.Tensor:
    """Where, in the cache seen as [blocks * kv_heads, ...], the first blocks of each sequence and KV head lie.

    [seqs * kv_heads, blocks]
    """
    blocks = block_tables[:, :num_blocks].long().unsqueeze(1)  # [seqs, 1, blocks]
    return (blocks * num_kv_heads + torch.arange(num_kv_heads).view(1, -1, 1)).flatten(0, 1)


def _gather(cache: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[seqs * kv_heads, gathered, head_dim], in the cache's type; of one in 8 bits float32."""
    num_blocks, num_kv_heads, block_size, head_dim = cache.shape
    if kv_codes.is_coded(cache):
        pairs = cache.view(torch.uint8).view(-1, block_size // 2, head_dim, 2).index_select(0, index.view(-1))
        codes = kv_codes.in_order(pairs).view(cache.dtype)
        return codes.float().view(index.shape[0], -1, head_dim)
    rows = cache.view(num_blocks * num_kv_heads, block_size * head_dim).index_select(0, index.view(-1))
    return rows.view(index.shape[0], -1, head_dim)


def _decode(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, decode: _Decode, spec: AttentionSpec,
            out: torch.Tensor) -> None:
    num_heads, head_dim = q.shape[1:]
    # The heads of a group are the "queries" of their KV head: nothing is repeated.
    # [seqs * kv_heads, group, head_dim]
    queries = q[decode.tokens].reshape(decode.index.shape[0], -1, head_dim).float()
    keys = _gather(k_cache, decode.index).float().transpose(1, 2)
    if spec.softcap:
        scores = _capped(torch.bmm(queries, keys).mul_(spec.scale), spec.softcap).add_(decode.mask)
    else:
        scores = torch.baddbmm(decode.mask, queries, keys, alpha=spec.scale)
    del keys  # so that the values come to lie in the same memory, which the processor's cache still holds
    by_head = scores.view(-1, num_heads, scores.shape[2])  # [seqs, heads, gathered]
    if spec.slopes is not None:
        by_head += spec.slopes.unsqueeze(1) * decode.distance
    sinks = None if spec.sinks is None else spec.sinks.view(1, num_heads, 1)
    weights = _softmax(by_head, sinks).view(scores.shape)
    result = torch.bmm(weights, _gather(v_cache, decode.index).float())
    out[decode.tokens] = result.view(-1, num_heads, head_dim).to(out.dtype)


def _prefill(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, prefill: _Prefill, spec: AttentionSpec,
             out: torch.Tensor) -> None:
    num_kv_heads, head_dim = k_cache.shape[1], k_cache.shape[3]
    queries = q[prefill.tokens]
    num_queries, num_heads, _ = queries.shape
    group = num_heads // num_kv_heads
    # [kv_heads, group, queries, head_dim], and K and V with stride 0 over the group
    queries = queries.view(num_queries, num_kv_heads, group, head_dim).permute(1, 2, 0, 3)
    keys, values = (_gather(cache, prefill.index).to(q.dtype)[:, None, prefill.seen].expand(-1, group, -1, -1)
                    for cache in (k_cache, v_cache))
    if spec.softcap or spec.sinks is not None:
        result = _prefill_by_hand(queries.float(), keys.float(), values.float(), prefill, spec)
    else:
        mask = prefill.mask if spec.slopes is None else _bias(prefill, spec).to(q.dtype)
        result = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=spec.scale,
                                                is_causal=mask is None and num_queries > 1)
    out[prefill.tokens].view(num_queries, num_kv_heads, group, head_dim).copy_(result.permute(2, 0, 1, 3))


def _prefill_by_hand(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, prefill: _Prefill,
                     spec: AttentionSpec) -> torch.Tensor:
    scores = torch.matmul(queries, keys.transpose(2, 3)).mul_(spec.scale)
    if spec.softcap:
        scores = _capped(scores, spec.softcap)
    scores += _bias(prefill, spec)
    sinks = None if spec.sinks is None else spec.sinks.view(spec.num_kv_heads, -1, 1, 1)
    return torch.matmul(_softmax(scores, sinks), values)


def _bias(prefill: _Prefill, spec: AttentionSpec) -> torch.Tensor:
    """What is added to the scores, as [kv_heads, group, queries, seen] or less."""
    distance = prefill.distance()
    mask = _mask(distance, None) if prefill.mask is None else prefill.mask
    return mask if spec.slopes is None else mask + spec.slopes.view(spec.num_kv_heads, -1, 1, 1) * distance


def _capped(scores: torch.Tensor, softcap: float) -> torch.Tensor:
    return scores.div_(softcap).tanh_().mul_(softcap)


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Over the last dimension, with one score more that is then left away."""
    if sinks is None:
        return scores.softmax(-1)
    return torch.cat((scores, sinks.expand(*scores.shape[:-1], 1)), -1).softmax(-1)[..., :-1]
