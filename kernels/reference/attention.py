"""Causal attention over a paged KV cache, as batched products on gathered blocks. Called by quire.engine.attention.

What depends on the step and not on the layer (which blocks, which masks) is worked out at the step's first layer and
kept in `inputs.scratch`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from quire.kernels.attention_spec import AttentionSpec, Fresh
from quire.kernels.reference.rotary import rotary_and_cache

_KEY = "reference.attention"


def paged_attention(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, inputs: Any, spec: AttentionSpec,
                    fresh: Fresh | None = None) -> torch.Tensor:
    """out = softmax(scale * q K^T + causal mask) V, each query head with the K and V of its group's KV head.

    q: [tokens, heads, head_dim], last two dimensions contiguous; k_cache, v_cache: [blocks, kv_heads, block_size,
    head_dim]; out: [tokens, heads, head_dim] of q.dtype, contiguous. Sequence s has the query tokens query_starts[s] ..
    query_starts[s + 1] - 1; the last sees all context_lens[s] positions, the one before it one less, and so on.
    Position p lies in block block_tables[s, p // block_size]. context_lens 0 is a padded sequence: zeros.
    Scores and sums in float32.

    `fresh` is (k, v, rotary) of this step's tokens, as rotary_and_cache takes them: that is carried out first, for
    all tokens. q, k and v are worthless afterwards.
    """
    assert spec.window is None and not spec.softcap and spec.slopes is None and spec.sinks is None, "not yet"
    if fresh is not None:
        k, v, rotary = fresh
        rotary_and_cache(q, k, v, rotary, inputs.positions, inputs.slots, k_cache, v_cache)
    _, num_kv_heads, block_size, _ = k_cache.shape
    plan = inputs.scratch.get(_KEY)
    if plan is None:
        plan = inputs.scratch[_KEY] = _plan(inputs, num_kv_heads, block_size, q.dtype)
    out = torch.empty(q.shape, dtype=q.dtype)
    for padded in plan.padded:
        out[padded] = 0
    for decode in plan.decodes:
        _decode(q, k_cache, v_cache, decode, spec.scale, out)
    for prefill in plan.prefills:
        _prefill(q, k_cache, v_cache, prefill, spec.scale, out)
    return out


@dataclass(slots=True)
class _Decode:
    """Sequences of one query token each and of similar length."""

    tokens: slice | torch.Tensor  # their places in the flat batch
    index: torch.Tensor  # [seqs * kv_heads, blocks], places in the cache seen as [blocks * kv_heads, ...]
    mask: torch.Tensor  # [seqs * kv_heads, 1, padded context] float32, 0 or -inf


@dataclass(slots=True)
class _Prefill:
    """One sequence of any number of query tokens."""

    tokens: slice
    index: torch.Tensor  # [kv_heads, blocks]
    context_len: int
    mask: torch.Tensor | None  # [queries, context]; None: plain causal, or nothing to hide


@dataclass(slots=True)
class _Plan:
    padded: list[slice]
    decodes: list[_Decode]
    prefills: list[_Prefill]


def _plan(inputs: Any, num_kv_heads: int, block_size: int, dtype: torch.dtype) -> _Plan:
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
            index = _index(inputs.block_tables[place: place + 1], context, num_kv_heads, block_size)
            plan.prefills.append(_Prefill(tokens, index, context, _causal_mask(num_queries, context, dtype)))
    for places in _of_similar_length(decodes, contexts, block_size):
        plan.decodes.append(_decode_plan(inputs, places, contexts, num_kv_heads, block_size))
    return plan


def _of_similar_length(places: list[int], contexts: list[int], block_size: int) -> list[list[int]]:
    """Cut into groups that waste little when each is padded to its longest; in order where one group will do."""
    def longest_of(group: list[int]) -> int:
        return max(contexts[p] for p in group)

    def waste(group: list[int]) -> float:
        return longest_of(group) * len(group) / sum(contexts[p] for p in group)

    if not places:
        return []
    if longest_of(places) <= 4 * block_size or waste(places) < 1.3:
        return [places]
    ordered = sorted(places, key=contexts.__getitem__, reverse=True)
    groups: list[list[int]] = [[]]
    for place in ordered:
        if groups[-1] and contexts[groups[-1][0]] > max(1.5 * contexts[place], 4 * block_size):
            groups.append([])
        groups[-1].append(place)
    return groups


def _decode_plan(inputs: Any, places: list[int], contexts: list[int], num_kv_heads: int,
                 block_size: int) -> _Decode:
    longest = max(contexts[p] for p in places)
    if places == list(range(places[0], places[0] + len(places))):
        tokens: slice | torch.Tensor = slice(places[0], places[0] + len(places))
    else:
        tokens = torch.tensor(places)
    index = _index(inputs.block_tables[tokens], longest, num_kv_heads, block_size)
    padded = -(-longest // block_size) * block_size
    hidden = torch.arange(padded) >= torch.tensor([contexts[p] for p in places]).unsqueeze(1)
    mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
    return _Decode(tokens, index, mask.repeat_interleave(num_kv_heads, dim=0).unsqueeze(1))


def _index(block_tables: torch.Tensor, context: int, num_kv_heads: int, block_size: int) -> torch.Tensor:
    """Where, in the cache seen as [blocks * kv_heads, ...], the blocks of each sequence and KV head lie.

    [seqs * kv_heads, blocks]
    """
    blocks = block_tables[:, : -(-context // block_size)].long().unsqueeze(1)  # [seqs, 1, blocks]
    return (blocks * num_kv_heads + torch.arange(num_kv_heads).view(1, -1, 1)).flatten(0, 1)


def _causal_mask(num_queries: int, context: int, dtype: torch.dtype) -> torch.Tensor | None:
    if num_queries in (1, context):
        return None
    hidden = torch.arange(context) > torch.arange(context - num_queries, context).unsqueeze(1)
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)


def _gather(cache: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[seqs * kv_heads, padded context, head_dim]"""
    num_blocks, num_kv_heads, block_size, head_dim = cache.shape
    rows = cache.view(num_blocks * num_kv_heads, block_size * head_dim).index_select(0, index.view(-1))
    return rows.view(index.shape[0], -1, head_dim)


def _decode(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, decode: _Decode, scale: float,
            out: torch.Tensor) -> None:
    num_heads, head_dim = q.shape[1:]
    # The heads of a group are the "queries" of their KV head: nothing is repeated.
    # [seqs * kv_heads, group, head_dim]
    queries = q[decode.tokens].reshape(decode.index.shape[0], -1, head_dim).float()
    keys = _gather(k_cache, decode.index).float()
    scores = torch.baddbmm(decode.mask, queries, keys.transpose(1, 2), alpha=scale)
    del keys  # so that the values come to lie in the same memory, which the processor's cache still holds
    result = torch.bmm(scores.softmax(-1), _gather(v_cache, decode.index).float())
    out[decode.tokens] = result.view(-1, num_heads, head_dim).to(out.dtype)


def _prefill(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, prefill: _Prefill, scale: float,
             out: torch.Tensor) -> None:
    num_kv_heads, head_dim = k_cache.shape[1], k_cache.shape[3]
    queries = q[prefill.tokens]
    num_queries, num_heads, _ = queries.shape
    group = num_heads // num_kv_heads
    # [kv_heads, group, queries, head_dim], and K and V with stride 0 over the group
    queries = queries.view(num_queries, num_kv_heads, group, head_dim).permute(1, 2, 0, 3)
    keys, values = (_gather(cache, prefill.index)[:, None, : prefill.context_len].expand(-1, group, -1, -1)
                    for cache in (k_cache, v_cache))
    result = F.scaled_dot_product_attention(queries, keys, values, attn_mask=prefill.mask, scale=scale,
                                            is_causal=num_queries == prefill.context_len)
    out[prefill.tokens].view(num_queries, num_kv_heads, group, head_dim).copy_(result.permute(2, 0, 1, 3))
