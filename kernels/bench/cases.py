"""Random inputs for the kernels, and the right answers in float64, written as plainly as possible.

Shared by tests/kernels and by check_gpu.py and time_gpu.py beside it; not used at run time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch

from quire.kernels.attention_spec import AttentionSpec, Fresh, Rotary, Style
from quire.kernels.packed_weight import BITS, TABLES, Kind, PackedWeight, packed
from quire.kernels.reference import kv_codes

_NOBODYS = 1 << 30
# OCP 8-bit floating point, by its formula: a sign, four bits of exponent, three of mantissa; no infinities, one NaN
E4M3 = [sign * (mantissa / 8 * 2.0 ** -6 if not exponent else (1 + mantissa / 8) * 2.0 ** (exponent - 7))
        for sign in (1, -1) for exponent in range(16) for mantissa in range(8) if (exponent, mantissa) != (15, 7)]


def poison(tensor: torch.Tensor) -> torch.Tensor:
    """NaN everywhere: what a kernel forgets to write, or reads where nothing is, then shows."""
    return tensor.fill_(torch.nan)


def relative_error(out: torch.Tensor, right: torch.Tensor) -> float:
    """|out - right| / |right|; NaN stays NaN and fails every comparison."""
    right = right.double()
    return float((out.double() - right).norm() / right.norm().clamp(min=1e-30))


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    right = x.double() @ weight.double().T
    return right if bias is None else right + bias.double()


@dataclass(slots=True)
class Paged:
    """One step's attention: what AttentionInputs holds, and the cache that it speaks of."""

    q: torch.Tensor  # [tokens, heads, head_dim], a strided view of a fused tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    inputs: SimpleNamespace
    contexts: list[int]
    queries: list[int]
    spec: AttentionSpec


def paged(contexts: list[int], queries: list[int], *, heads: int, kv_heads: int, head_dim: int, block_size: int = 16,
          dtype: torch.dtype = torch.float32, device: str = "cpu", poisoned: bool = False, num_shared_blocks: int = 0,
          outsiders: tuple[int, ...] = (), window: int | None = None, softcap: float = 0.0, alibi: bool = False,
          sinks: bool = False, codes: torch.dtype | None = None) -> Paged:
    """Sequences with their blocks scattered over the cache; those of one query come first.

    The first num_shared_blocks are the same ones for all decoding sequences that are no outsiders.

    Poisoned: all places of the cache that hold nothing are NaN, and unused block table entries lead to such a block.
    With a window, so do those of blocks that it has left behind, poisoned or not.

    `codes`: the type of 8 bits that the cache is in.
    """
    num_decodes = next((i for i, n in enumerate(queries) if n > 1), len(queries))
    max_context = max(*contexts, 1)
    num_blocks = [-(-c // block_size) for c in contexts]
    total = sum(num_blocks) + 3
    shape = (total, kv_heads, block_size, head_dim)
    k_cache, v_cache = (torch.randn(shape, dtype=dtype, device=device) for _ in range(2))
    free = torch.randperm(total - 2) + 1
    # Nobody's block behind the last column: whoever reads its K or V reads past the cache.
    block_tables = torch.full((len(contexts), -(-max_context // block_size)), _NOBODYS if poisoned else 0,
                              dtype=torch.int32)
    members = [row for row in range(num_decodes) if num_shared_blocks and row not in outsiders]
    used = torch.zeros(total, block_size, dtype=torch.bool)
    start = 0
    for row, (context, count) in enumerate(zip(contexts, num_blocks)):
        blocks = free[start: start + count]
        if row in members:
            blocks = torch.cat((block_tables[members[0], :num_shared_blocks], blocks[num_shared_blocks:])
                               ) if row != members[0] else blocks
            assert count > num_shared_blocks, "a sequence has a token of its own"
        block_tables[row, :count] = blocks
        places = torch.arange(context)
        used[blocks[places // block_size], places % block_size] = True
        start += count
    if poisoned:
        for cache in (k_cache, v_cache):
            cache.masked_fill_(~used[:, None, :, None].to(device), torch.nan)
    if window is not None:
        k_cache[-1] = v_cache[-1] = torch.nan
        for row, (context, num_queries) in enumerate(zip(contexts, queries)):
            block_tables[row, :first_seen(context, num_queries, window) // block_size] = total - 1
    starts = torch.tensor([0, *queries]).cumsum(0)
    positions = [torch.arange(c - n, c).clamp(min=0) for c, n in zip(contexts, queries)]
    slots = [torch.where(torch.arange(n) < c, table[p // block_size] * block_size + p % block_size, -1)
             for c, n, p, table in zip(contexts, queries, positions, block_tables)]
    fused = torch.randn((int(starts[-1]), heads + 3, head_dim), dtype=dtype, device=device)
    inputs = SimpleNamespace(
        positions=torch.cat(positions).to(torch.int32).to(device), slots=torch.cat(slots).to(torch.int32).to(device),
        query_starts=starts.to(torch.int32).to(device), block_tables=block_tables.to(device),
        context_lens=torch.tensor(contexts, dtype=torch.int32, device=device), num_decodes=num_decodes,
        max_query_len=max(queries), max_context_len=max_context, host_query_lens=queries, host_context_lens=contexts,
        first_whole=max((i + 1 for i, (c, n) in enumerate(zip(contexts, queries)) if c != n), default=0),
        scratch={}, shared=None)
    if members:
        lens = torch.zeros(num_decodes, dtype=torch.int32)
        lens[members] = num_shared_blocks * block_size
        packed = torch.tensor(members + [-1] * (num_decodes - len(members)), dtype=torch.int32)
        inputs.shared = (lens.to(device), packed.to(device))
    spec = AttentionSpec(heads, kv_heads, head_dim, head_dim**-0.5, window, softcap,
                         torch.rand(heads, device=device) if alibi else None,
                         torch.randn(heads, device=device) * 2 if sinks else None)
    if codes is not None:
        spec = replace(spec, k_scale=0.03, v_scale=0.01)  # that few numbers are beyond the largest
        k_cache, v_cache = (coded(cache, scale, codes) for cache, scale in ((k_cache, 0.03), (v_cache, 0.01)))
    return Paged(fused[:, :heads], k_cache, v_cache, inputs, contexts, queries, spec)


def coded(cache: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """As a cache of that type holds it. What is NaN is NaN there too, unless it shares a word with what is not: such a
    place holds some number, as kernels that write codes leave it."""
    num_blocks, kv_heads, block_size, head_dim = cache.shape
    codes = kv_codes.encoded(cache, scale, dtype).view(torch.uint8)
    words = cache.view(num_blocks, kv_heads, block_size // 2, 2, head_dim)
    poisoned = words.isnan().all(3, keepdim=True).expand_as(words).reshape(cache.shape)
    codes[poisoned] = 127  # NaN, in either type
    held = torch.zeros_like(codes).view(dtype)
    blocks, offsets = (x.flatten().to(cache.device) for x in torch.meshgrid(
        torch.arange(num_blocks), torch.arange(block_size), indexing="ij"))
    kv_codes.put(held, blocks, offsets, codes.view(dtype).transpose(1, 2).flatten(0, 1))
    return held


def numbers(cache: torch.Tensor, scale: float) -> torch.Tensor:
    """A cache's K or V in the order of its shape, whatever it holds them in."""
    return kv_codes.numbers(cache) * scale if kv_codes.is_coded(cache) else cache


def first_seen(context: int, num_queries: int, window: int | None) -> int:
    """The first position that any query of a sequence sees."""
    return 0 if window is None else max(context - num_queries - window + 1, 0)


def attention(case: Paged) -> torch.Tensor:
    """[tokens, heads, head_dim] float64; zeros for padded sequences."""
    out = torch.zeros(case.q.shape, dtype=torch.float64, device=case.q.device)
    _, kv_heads, block_size, _ = case.k_cache.shape
    group = case.q.shape[1] // kv_heads
    spec = case.spec
    caches = numbers(case.k_cache, spec.k_scale), numbers(case.v_cache, spec.v_scale)
    start = 0
    for row, (context, count) in enumerate(zip(case.contexts, case.queries)):
        tokens = slice(start, start + count)
        start += count
        if context == 0:
            continue
        places = torch.arange(first_seen(context, count, spec.window), context, device=case.q.device)
        blocks = case.inputs.block_tables[row].long()[places // block_size]
        keys, values = (cache[blocks, :, places % block_size].double().repeat_interleave(group, dim=1)
                        for cache in caches)  # [context, heads, head_dim]
        scores = torch.einsum("qhd,chd->hqc", case.q[tokens].double(), keys) * spec.scale
        if spec.softcap:
            scores = spec.softcap * (scores / spec.softcap).tanh()
        own = torch.arange(context - count, context, device=case.q.device).unsqueeze(1)
        if spec.slopes is not None:
            scores += spec.slopes.double()[:, None, None] * (places - own)
        scores.masked_fill_(places > own, -torch.inf)
        if spec.window:
            scores.masked_fill_(places <= own - spec.window, -torch.inf)
        if spec.sinks is not None:
            scores = torch.cat((scores, spec.sinks.double()[:, None, None].expand(-1, count, 1)), dim=2)
        out[tokens] = torch.einsum("hqc,chd->qhd", scores.softmax(2)[..., :len(places)], values)
    return out


@dataclass(slots=True)
class NotCached:
    """A step whose newest keys and values are not in the cache yet, and the same step after they were put there."""

    unrotated: Paged
    fresh: Fresh
    expected: torch.Tensor  # [tokens, heads, head_dim] float64
    k_cache: torch.Tensor  # as it must be afterwards
    v_cache: torch.Tensor


def with_fresh(case: Paged, rotary_dim: int, style: Style = "half", *, moved: bool = False) -> NotCached:
    """Takes the newest tokens' keys out of the cache of `case`, turned back; its own q becomes the turned one.

    `moved`: tokens turn by any row of the angles, not by their places in the sequence.
    """
    kv_heads, head_dim, dtype, device = case.k_cache.shape[1], case.k_cache.shape[3], case.q.dtype, case.q.device
    inputs, num_tokens = case.inputs, case.q.shape[0]
    angles = torch.rand(max(*case.contexts, 1), rotary_dim // 2, device=device) * 6
    if moved:
        inputs.positions = torch.randint(len(angles), (num_tokens,), dtype=torch.int32, device=device)
    fused = torch.randn(num_tokens, case.q.shape[1] + 2 * kv_heads, head_dim, device=device).to(dtype)
    q, k, v = fused.split([case.q.shape[1], kv_heads, kv_heads], dim=1)
    at = angles[inputs.positions.long()]
    k_cache, v_cache = case.k_cache.clone(), case.v_cache.clone()
    real = inputs.slots >= 0
    blocks, offsets = (inputs.slots[real] // k_cache.shape[2]).long(), (inputs.slots[real] % k_cache.shape[2]).long()
    newest = rotated(k, at, style)[real].to(dtype), v[real]
    if kv_codes.is_coded(k_cache):
        for cache, x, scale in zip((k_cache, v_cache), newest, (case.spec.k_scale, case.spec.v_scale)):
            kv_codes.put(cache, blocks, offsets, kv_codes.encoded(x, scale, cache.dtype))
    else:
        k_cache[blocks, :, offsets], v_cache[blocks, :, offsets] = newest
    turned = Paged(rotated(q, at, style).to(dtype), k_cache, v_cache, inputs, case.contexts, case.queries, case.spec)
    before = Paged(q, case.k_cache, case.v_cache, inputs, case.contexts, case.queries, case.spec)
    table = rotary(angles, style, moved=moved) if rotary_dim else None
    return NotCached(before, (k, v, table), attention(turned), k_cache, v_cache)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    normed = normed if weight is None else normed * weight.double()
    return normed if bias is None else normed + bias.double()


def activation(x: torch.Tensor, kind: str) -> torch.Tensor:
    x = x.double()
    if kind == "silu":
        return x * torch.sigmoid(x)
    if kind == "gelu_tanh":  # (1 + tanh(a)) / 2 as a sigmoid: torch's own form cancels for very negative values
        return x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))
    if kind == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return torch.nn.functional.gelu(x) if kind == "gelu" else x.clamp(min=0)


def gated_activation(gate_up: torch.Tensor, kind: str) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate, kind) * up.double()


def rotary(angles: torch.Tensor, style: Style = "half", *, moved: bool = False) -> Rotary:
    return Rotary(torch.cat((angles.cos(), angles.sin()), 1), style, moved)


def gated_experts(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor,
                  kind: str) -> torch.Tensor:
    rows = []
    for token, experts, shares in zip(x.double(), ids.tolist(), weights.double()):
        inner = [gated_activation((gate_up[e].double() @ token).unsqueeze(0), kind)[0] for e in experts]
        rows.append(sum(share * (down[e].double() @ h) for share, e, h in zip(shares, experts, inner)))
    return torch.stack(rows)


def rotated(x: torch.Tensor, angles: torch.Tensor, style: Style = "half") -> torch.Tensor:
    """x [tokens, heads, head_dim] with its first dimensions rotated by angles [tokens, rotary_dim / 2], as complex."""
    half = angles.shape[1]
    wide = x.double()
    if style == "interleaved":
        pairs = wide[..., 0: 2 * half: 2], wide[..., 1: 2 * half: 2]
    else:
        pairs = wide[..., :half], wide[..., half: 2 * half]
    turned = torch.complex(*pairs) * torch.exp(1j * angles.double()).unsqueeze(1)
    both = torch.stack if style == "interleaved" else torch.cat
    return torch.cat((both((turned.real, turned.imag), dim=-1).flatten(2), wide[..., 2 * half:]), dim=-1)


def kept(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Which tokens of one row the filters keep, by sorting. [vocab] bool"""
    z = logits.double() / temperature
    keep = torch.ones_like(z, dtype=torch.bool)
    weights = (z - z.max()).exp()
    if min_p > 0:
        keep &= weights >= min_p
    if 0 < top_k < z.numel():
        keep &= z >= z.sort(descending=True).values[top_k - 1]
    if top_p < 1:
        weights = torch.where(keep, weights, 0.0)
        values, order = z.sort(descending=True)
        before = weights[order].cumsum(0) - weights[order]
        first = torch.searchsorted(-values, -values)  # the first of equal values decides for them all
        within = torch.empty_like(keep)
        within[order] = before[first] < top_p * weights.sum()
        within[z == z.max()] = True
        keep &= within
    return keep


def penalized(logits: torch.Tensor, prompt: list[int], output: list[int], repetition: float, presence: float,
              frequency: float) -> torch.Tensor:
    """One row, token by token."""
    row = logits.double().clone()
    for token in {*prompt, *output}:
        row[token] = row[token] / repetition if row[token] > 0 else row[token] * repetition
    for token in set(output):
        row[token] -= presence + frequency * output.count(token)
    return row


def packed_weight(kind: Kind, num_outputs: int, size: int, group: int, *, with_zeros: bool = False,
                  whole_zeros: bool = False, with_outer: bool = False, device: str = "cpu"
                  ) -> tuple[PackedWeight, torch.Tensor]:
    """A random one, and the matrix that it stands for, float64 [outputs, size]."""
    values = torch.tensor(TABLES[kind] if BITS[kind] == 4 else range(-128, 128) if kind == "int8" else
                          E4M3, dtype=torch.float64)
    chosen = torch.randint(len(values), (num_outputs, size))
    groups = -(-size // group)
    scales = (torch.rand(groups, num_outputs) + 0.5) / (values.std() * size ** 0.5)
    zeros = torch.randn(groups, num_outputs) * values.std() if with_zeros else None
    if with_zeros and whole_zeros:
        zeros = torch.randint(-8, 8, (groups, num_outputs), dtype=torch.int8)
    own = torch.arange(size) // group
    right = values[chosen]
    if zeros is not None:
        right = right - zeros.double()[own].T
    right = right * scales.double()[own].T
    if BITS[kind] == 4:
        codes = chosen.to(torch.uint8)
    elif kind == "int8":
        codes = (chosen - 128).to(torch.int8).view(torch.uint8)
    else:
        codes = values[chosen].to(torch.float8_e4m3fn).view(torch.uint8)
    outer = torch.rand(num_outputs) + 0.5 if with_outer else None
    if outer is not None:
        right = right * outer.double().unsqueeze(1)
    zeros, outer = (None if tensor is None else tensor.to(device) for tensor in (zeros, outer))
    return packed(kind, codes.to(device), scales.to(device), group, zeros, outer), right.to(device)
