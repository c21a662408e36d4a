"""Check every kernel on a CUDA device: `python -m quire.kernels.bench.check_gpu [--quick]`.

Each case draws fresh inputs, poisons what must not be read, and compares with float64. Prints one line a kernel and
dtype with its worst relative error, and exits with 1 if any is beyond its tolerance (NaN always is).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from quire.kernels import compile_ahead, launch, ops
from quire.kernels.attention_spec import Style
from quire.kernels.bench import cases
from quire.kernels.packed_weight import Kind, PackedWeight
from quire.kernels.reference import kv_codes
from quire.kernels.reference.step import Gathered

DEVICE = "cuda"
# Relative errors. Rounding a result costs 4e-3 in bfloat16 and 5e-4 in float16 at worst; attention rounds weights too.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
GROUPS = [(4, 4), (9, 3), (16, 4), (14, 2), (16, 2), (8, 8)]  # groups of 1, 3, 4, 7, 8, 1

Errors = Iterator[tuple[str, float]]  # what was checked, and its relative error


def dtypes() -> list[torch.dtype]:
    bfloat16 = torch.cuda.get_device_capability() >= (8, 0)
    return [dtype for dtype in TOLERANCE if bfloat16 or dtype != torch.bfloat16]


def check_norms(dtype: torch.dtype, quick: bool) -> Errors:
    shapes = [(1, 1), (3, 33), (17, 576), (2, 896), (300, 4096), (5, 8192), (1, 16384)]
    for rows, size in shapes[:4] if quick else shapes:
        x, residual = (torch.randn(rows, size, device=DEVICE, dtype=dtype) for _ in range(2))
        weight = torch.randn(size, device=DEVICE, dtype=dtype)
        yield f"rms_norm {rows}x{size}", cases.relative_error(ops.rms_norm(x, weight, 1e-5),
                                                              cases.rms_norm(x, weight, 1e-5))
        total = x + residual
        out = ops.add_rms_norm(x, residual, weight, 1e-5)
        yield f"add_rms_norm {rows}x{size}", cases.relative_error(out, cases.rms_norm(total, weight, 1e-5))
        yield f"residual {rows}x{size}", cases.relative_error(residual, total)
        total = residual + cases.rms_norm(x, weight, 1e-5)
        out = ops.add_rms_norm(x, residual, weight, 1e-5, weight)
        yield f"add_rms_norm of a norm {rows}x{size}", cases.relative_error(out, cases.rms_norm(total, weight, 1e-5))
    heads = torch.randn(7, 20 * 128, device=DEVICE, dtype=dtype)[:, 128: 9 * 128].view(7, 8, 128)
    weight = torch.randn(128, device=DEVICE, dtype=dtype)
    yield "rms_norm of heads", cases.relative_error(ops.rms_norm(heads, weight, 1e-6),
                                                    cases.rms_norm(heads, weight, 1e-6))


def check_layer_norms(dtype: torch.dtype, quick: bool) -> Errors:
    shapes = [(1, 1), (3, 33), (17, 768), (300, 4096), (5, 14336)]
    for rows, size in shapes[:3] if quick else shapes:
        x, residual = (torch.randn(rows, size, device=DEVICE, dtype=dtype) + 2 for _ in range(2))
        weight, bias = (torch.randn(size, device=DEVICE, dtype=dtype) for _ in range(2))
        for w, b in ((weight, bias), (weight, None), (None, None)) if size > 1 else ((weight, bias),):
            yield f"layer_norm {rows}x{size}", cases.relative_error(ops.layer_norm(x, w, b, 1e-5),
                                                                    cases.layer_norm(x, w, b, 1e-5))
        total = x + residual
        out = ops.add_layer_norm(x, residual, weight, bias, 1e-5)
        yield f"add_layer_norm {rows}x{size}", cases.relative_error(out, cases.layer_norm(total, weight, bias, 1e-5))
        yield f"residual {rows}x{size}", cases.relative_error(residual, total)


def check_head_norms(dtype: torch.dtype, quick: bool) -> Errors:
    for (num_q, num_k), head_dim in itertools.product(GROUPS[:2] if quick else GROUPS, (64, 128, 256)):
        fused = torch.randn(77, num_q + 2 * num_k, head_dim, device=DEVICE, dtype=dtype)
        qk, weights = fused[:, :num_q + num_k], torch.randn(2, head_dim, device=DEVICE, dtype=dtype)
        right = torch.cat([cases.rms_norm(heads, weight, 1e-6)
                           for heads, weight in zip(qk.split([num_q, num_k], dim=1), weights)], 1)
        ops.norm_heads(qk, weights[0], weights[1], num_q, 1e-6)
        yield f"norm_heads {num_q}/{num_k} d{head_dim}", cases.relative_error(qk, right)


def check_experts(dtype: torch.dtype, quick: bool) -> Errors:
    for num_experts, chosen in ((8, 2), (128, 8)):
        gate_up = torch.randn(num_experts, 2 * 192, 256, device=DEVICE, dtype=dtype) / 16
        down = torch.randn(num_experts, 256, 192, device=DEVICE, dtype=dtype) / 14
        for num_tokens in (1, 70, 1500) if quick else (1, 7, 70, 300, 1500, 5000):
            logits = torch.randn(num_tokens, num_experts, device=DEVICE, dtype=dtype) * 2
            ids, weights = ops.route(logits, chosen, scoring="softmax", renormalize=True)
            right = torch.softmax(logits.double(), -1).topk(chosen)
            name = f"{num_tokens} tokens, {chosen} of {num_experts}"
            yield f"route {name}", cases.relative_error(weights, right.values / right.values.sum(-1, keepdim=True))
            x = torch.randn(num_tokens, 256, device=DEVICE, dtype=dtype)
            some = slice(0, 64)  # the plain form takes its time
            out = ops.gated_experts(x, gate_up, down, ids, weights, "silu")
            yield f"gated_experts {name}", cases.relative_error(
                out[some], cases.gated_experts(x[some], gate_up, down, ids[some], weights[some], "silu"))


def check_activation(dtype: torch.dtype, quick: bool) -> Errors:
    for kind in ("silu", "gelu_tanh", "gelu", "relu", "quick_gelu"):
        x = torch.randn(3, 1025, device=DEVICE, dtype=dtype) * 3
        yield f"{kind} alone", cases.relative_error(ops.activation(x, kind), cases.activation(x, kind))
    for kind, (rows, size) in itertools.product(("silu", "gelu_tanh", "gelu"), ((1, 1), (3, 1025), (200, 4864))):
        gate_up = torch.randn(rows, 2 * size, device=DEVICE, dtype=dtype) * 3
        yield f"{kind} {rows}x{size}", cases.relative_error(ops.gated_activation(gate_up, kind),
                                                            cases.gated_activation(gate_up, kind))


def check_rotary(dtype: torch.dtype, quick: bool) -> Errors:
    shapes: list[tuple[int, int, Style]] = [
        (64, 64, "half"), (128, 128, "half"), (80, 32, "half"), (96, 96, "half"), (256, 64, "half"), (80, 20, "half"),
        (64, 0, "half"), (128, 64, "interleaved"), (96, 40, "interleaved"), (512, 512, "half")]
    for (heads, kv_heads), (head_dim, rotary_dim, style), num_tokens in itertools.product(
            [*GROUPS[:3], (71, 1)] if quick else [*GROUPS, (71, 1)], shapes, (1, 77)):
        fused = torch.randn(num_tokens, heads + 2 * kv_heads, head_dim, device=DEVICE, dtype=dtype)
        q, k, v = fused.split([heads, kv_heads, kv_heads], dim=1)
        angles = torch.rand(1000, rotary_dim // 2, device=DEVICE) * 6
        positions = torch.randint(1000, (num_tokens,), device=DEVICE, dtype=torch.int32)
        slots = torch.randperm(10 * 16, device=DEVICE)[:num_tokens].to(torch.int32)
        slots[num_tokens // 2 + 1:: 5] = -1
        k_cache, v_cache = (cases.poison(torch.empty(10, kv_heads, 16, head_dim, device=DEVICE, dtype=dtype))
                            for _ in range(2))
        right = [cases.rotated(q, angles[positions], style), cases.rotated(k, angles[positions], style), v.double()]
        rotary = cases.rotary(angles, style) if rotary_dim else None
        ops.rotary_and_cache(q, k, v, rotary, positions, slots, k_cache, v_cache)
        name = f"rotary {heads}/{kv_heads} d{head_dim} r{rotary_dim} {style} t{num_tokens}"
        yield f"{name} q", cases.relative_error(q, right[0])
        real = slots >= 0
        blocks, offsets = (slots[real] // 16).long(), (slots[real] % 16).long()
        for which, cache, expected in zip("kv", (k_cache, v_cache), right[1:]):
            yield f"{name} {which}", cases.relative_error(cache[blocks, :, offsets], expected[real])
            cache[blocks, :, offsets] = torch.nan
            yield f"{name} {which} elsewhere", 0.0 if bool(cache.isnan().all()) else torch.inf
    for heads, head_dim, num_tokens in ((32, 80, 5000), (32, 64, 77), (32, 72, 1)):  # of vision towers
        fused = torch.randn(num_tokens, 3 * heads // 2, head_dim, device=DEVICE, dtype=dtype)
        angles = torch.rand(1000, head_dim // 2, device=DEVICE) * 6
        positions = torch.randint(1000, (num_tokens,), device=DEVICE, dtype=torch.int32)
        expected = torch.cat((cases.rotated(fused[:, :heads], angles[positions]), fused[:, heads:].double()), 1)
        ops.rotate(fused[:, :heads], cases.rotary(angles), positions)
        yield f"rotate {heads} d{head_dim} t{num_tokens}", cases.relative_error(fused, expected)


def check_attention(dtype: torch.dtype, quick: bool) -> Errors:
    steps = {
        "boundaries": ([1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257], [1] * 16),
        "one long": ([5000], [1]),
        "uneven": ([4097, 1, 300, 2048, 777], [1] * 5),
        "many": ([3 + 7 * i for i in range(200)], [1] * 200),
        "padded": ([100, 3, 0, 0, 0], [1] * 5),
        "many, padded": ([900, *range(62), 0, 1700, 0, 0], [1] * 67),
        "prompts": ([1, 2, 17, 128, 129, 500], [1, 2, 17, 128, 129, 500]),
        "chunks": ([700, 64, 1025, 300], [130, 2, 1, 299]),
        "mixed": ([33, 900, 5, 600, 40], [1, 1, 1, 77, 40]),
    }
    if not quick:
        steps["32k"] = ([32768, 1, 20001], [1, 1, 1])
        steps["32k chunk"] = ([32768, 9000], [1, 300])
    # Every group at one head size, every head size and block size at one group: compiling is what takes the time.
    shapes = [(64, group, 16) for group in (GROUPS[1:4] if quick else GROUPS)]
    shapes += [(head_dim, GROUPS[3], 16) for head_dim in ([128] if quick else [32, 80, 96, 128, 256])]
    if not quick:
        shapes += [(128, GROUPS[0], 16), (128, GROUPS[1], 64), (64, GROUPS[2], 128)]
    for head_dim, (heads, kv_heads), block_size in shapes:
        for name, (contexts, queries) in steps.items():
            case = cases.paged(contexts, queries, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
                               block_size=block_size, dtype=dtype, device=DEVICE, poisoned=True)
            fresh = cases.with_fresh(case, head_dim // 2 if name == "many" else head_dim)
            out = ops.paged_attention(case.q, case.k_cache, case.v_cache, case.inputs, case.spec)
            yield (f"attention {name} {heads}/{kv_heads} d{head_dim} b{block_size}",
                   cases.relative_error(out, cases.attention(case)))
            yield from _check_fresh(fresh, f"{name} {heads}/{kv_heads} d{head_dim} b{block_size}")
        case = cases.paged([3 + 128 * 9 + 7 * (i % 30) for i in range(90)], [1] * 90, heads=heads, kv_heads=kv_heads,
                           head_dim=head_dim, block_size=block_size, dtype=dtype, device=DEVICE, poisoned=True,
                           num_shared_blocks=128 * 8 // block_size, outsiders=(0, 5, 89))
        out = ops.paged_attention(case.q, case.k_cache, case.v_cache, case.inputs, case.spec)
        yield (f"attention shared {heads}/{kv_heads} d{head_dim} b{block_size}",
               cases.relative_error(out, cases.attention(case)))
        yield from _check_fresh(cases.with_fresh(case, head_dim), f"shared {heads}/{kv_heads} d{head_dim}")


def check_attention_variants(dtype: torch.dtype, quick: bool) -> Errors:
    """What check_attention leaves at its default: each option alone, all together, and unusual shapes."""
    biased: dict[str, Any] = {"softcap": 5.0, "alibi": True, "sinks": True}
    steps = {
        "decodes": ([1, 15, 129, 0, 5000, 777, 1000], [1] * 7),
        "many": ([3 + 13 * i for i in range(90)], [1] * 90),
        "prompts": ([1, 17, 500, 1300], [1, 17, 500, 1300]),
        "chunks": ([5, 600, 700, 64, 3000], [1, 1, 130, 2, 299]),
    }
    windows = [{"window": 100}, {"window": 1000}, {"window": 100, **biased}]
    if not quick:
        windows += [{"window": 1}, {"window": 16}, {"window": 4096}]
    shapes: list[tuple[int, int, int, Style, list[dict[str, Any]]]] = [
        (8, 4, 64, "half", [*windows, {"softcap": 5.0}, {"alibi": True}, {"sinks": True}, biased]),
        (16, 4, 128, "half", [windows[2], biased] if quick else [*windows, biased]),
        (8, 4, 256, "half", [{"window": 300, "softcap": 50.0}]),
        (71, 1, 64, "half", [{}]), (4, 2, 128, "interleaved", [{}]), (5, 5, 80, "half", [{}])]
    if not quick:
        shapes += [(48, 1, 128, "half", [{}, biased]), (40, 40, 128, "half", [{"alibi": True}]),
                   (16, 1, 256, "interleaved", [{}]), (128, 1, 64, "half", [{}]), (4, 2, 512, "half", [{}, windows[2]]),
                   (12, 12, 64, "interleaved", [windows[2]])]
    for (heads, kv_heads, head_dim, style, variants), (step_name, step) in itertools.product(shapes, steps.items()):
        for variant in variants:
            case = cases.paged(*step, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, device=DEVICE,
                               poisoned=True, **variant)
            name = f"{step_name} {heads}/{kv_heads} d{head_dim} {style} {variant}"
            out = ops.paged_attention(case.q, case.k_cache, case.v_cache, case.inputs, case.spec)
            yield f"attention {name}", cases.relative_error(out, cases.attention(case))
            rotary_dim = 0 if "alibi" in variant else head_dim // 2 if style == "interleaved" else head_dim
            yield from _check_fresh(cases.with_fresh(case, rotary_dim, style), name)
            if not variant:
                case = cases.paged(*step, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, device=DEVICE,
                                   poisoned=True)
                yield from _check_fresh(cases.with_fresh(case, rotary_dim, style, moved=True), f"{name}, moved")
    case = cases.paged([1300 + 7 * i for i in range(40)], [1] * 40, heads=8, kv_heads=4, head_dim=64, dtype=dtype,
                       device=DEVICE, poisoned=True, num_shared_blocks=64, outsiders=(0, 5), **biased)
    for window in (None, 100):  # which leaves the common beginning aside
        case.spec = replace(case.spec, window=window)
        out = ops.paged_attention(case.q, case.k_cache, case.v_cache, case.inputs, case.spec)
        yield f"shared, window {window}", cases.relative_error(out, cases.attention(case))


def _check_fresh(case: cases.NotCached, name: str) -> Errors:
    step = case.unrotated
    out = ops.paged_attention(step.q, step.k_cache, step.v_cache, step.inputs, step.spec, case.fresh)
    yield f"fresh attention {name}", cases.relative_error(out, case.expected)
    for ours, right in ((step.k_cache, case.k_cache), (step.v_cache, case.v_cache)):
        yield f"fresh keys and values {name}", cases.relative_error(ours.nan_to_num(7.0), right.nan_to_num(7.0))


def check_coded_attention(dtype: torch.dtype, quick: bool) -> Errors:
    """Caches in 8 bits, for all that reads and writes them."""
    biased: dict[str, Any] = {"softcap": 5.0, "alibi": True, "sinks": True}
    steps = {
        "decodes": ([1, 15, 16, 129, 0, 5000, 777], [1] * 7),
        "many": ([3 + 13 * i for i in range(90)], [1] * 90),
        "prompts": ([1, 17, 500, 1300], [1, 17, 500, 1300]),
        "chunks": ([5, 600, 700, 64, 3000], [1, 1, 130, 2, 299]),
    }
    shapes = [(14, 2, 64, 16), (28, 4, 128, 16)] if quick else [
        (14, 2, 64, 16), (28, 4, 128, 16), (32, 32, 128, 16), (8, 4, 256, 32), (5, 5, 80, 16), (71, 1, 64, 128),
        (48, 1, 128, 16), (4, 2, 512, 16)]
    for codes, shape, (name, step) in itertools.product(kv_codes.TYPES, shapes, steps.items()):
        heads, kv_heads, head_dim, block_size = shape
        for variant in ({}, {"window": 101, **biased}):
            case = cases.paged(*step, heads=heads, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size,
                               dtype=dtype, device=DEVICE, poisoned=True, codes=codes, **variant)
            full = f"{name} {str(codes)[6:]} {heads}/{kv_heads} d{head_dim} {variant}"
            out = ops.paged_attention(case.q, case.k_cache, case.v_cache, case.inputs, case.spec)
            yield f"attention {full}", _beyond_float16(cases.relative_error(out, cases.attention(case)))
            yield from _check_fresh_codes(cases.with_fresh(case, head_dim // 2 if name == "many" else head_dim), full)
        if name != "decodes":
            continue
        case = cases.paged([3 + 128 * 9 + 7 * (i % 30) for i in range(90)], [1] * 90, heads=heads, kv_heads=kv_heads,
                           head_dim=head_dim, block_size=block_size, dtype=dtype, device=DEVICE, poisoned=True,
                           num_shared_blocks=128 * 8 // block_size, outsiders=(0, 5, 89), codes=codes)
        out = ops.paged_attention(case.q, case.k_cache, case.v_cache, case.inputs, case.spec)
        error = cases.relative_error(out, cases.attention(case))
        yield f"attention shared {str(codes)[6:]} {shape}", _beyond_float16(error)


def _check_fresh_codes(case: cases.NotCached, name: str) -> Errors:
    step = case.unrotated
    out = ops.paged_attention(step.q, step.k_cache, step.v_cache, step.inputs, step.spec, case.fresh)
    # A turned key that lies between two codes may have become the other one.
    yield f"fresh attention {name}", max(0.0, _beyond_float16(cases.relative_error(out, case.expected)) - 2e-3)
    for ours, right in ((step.k_cache, case.k_cache), (step.v_cache, case.v_cache)):
        differing = (ours.view(torch.uint8) != right.view(torch.uint8)).float().mean()
        yield f"fresh codes {name}", max(0.0, float(differing) - 1e-3)


def _beyond_float16(error: float) -> float:
    """Of queries of any type, which kernels round to float16."""
    return error if error != error else max(0.0, error - 1e-3)


def check_copy(dtype: torch.dtype, quick: bool) -> Errors:
    k_cache, v_cache = (torch.randn(9, 3, 16, 80, device=DEVICE, dtype=dtype) for _ in range(2))
    before = [k_cache.clone(), v_cache.clone()]
    sources, targets = torch.tensor([[5, 0, 5], [1, 6, 3]], dtype=torch.int32, device=DEVICE)
    ops.copy_blocks(k_cache, v_cache, sources, targets)
    for cache, old in zip((k_cache, v_cache), before):
        old[targets.long()] = old[sources.long()]
        yield "copy_blocks", cases.relative_error(cache, old)


def check_step(dtype: torch.dtype, quick: bool) -> Errors:
    """Integers alone: any difference is a whole error."""
    for num_seqs, num_tokens, num_groups in ((1, 1, 7), (8, 520, 1), (1024, 1024, 2), (3, 8192, 1)):
        state = {"tokens": torch.randint(0, 99, (1025, 4097)).int(),
                 "tables": torch.randint(0, 999, (num_groups, 1025, 700)).int(),
                 "floats": torch.rand(6, 1025), "top_k": torch.randint(0, 50, (1025,)).int(),
                 "seeds": torch.randint(-2**62, 2**62, (1025,))}
        rows, token_rows = (torch.randint(0, 1025, (n,)).int() for n in (num_seqs, num_tokens))
        contexts = torch.randint(0, 4096, (num_seqs,)).int()
        inputs = [rows, contexts, token_rows, torch.randint(-1, 4096, (num_tokens,)).int(), *state.values()]
        deltas = torch.randint(-4096, 4096, (1025,)).int() if num_groups == 1 else None
        gather: Callable[..., Gathered] = ops.gather_step
        ours = gather(*(tensor.to(DEVICE) for tensor in inputs), 16, None if deltas is None else deltas.to(DEVICE))
        held = (torch.arange(700) * 16 < contexts[:, None]).to(DEVICE)
        ours = ours._replace(block_tables=ours.block_tables.where(held, -1))
        theirs = gather(*inputs, 16, deltas)
        theirs = theirs._replace(block_tables=theirs.block_tables.where(held.cpu(), -1))
        for name, found, right in zip(ours._fields, ours, theirs):
            yield f"{name} {num_seqs}/{num_tokens}", float(not torch.equal(found.cpu(), right))
        own, positions = torch.randperm(1025)[:num_seqs].int(), torch.randint(-1, 4096, (num_seqs,)).int()
        written = state["tokens"].to(DEVICE)
        ops.put_tokens(written, own.to(DEVICE), positions.to(DEVICE), own.to(DEVICE))
        ops.put_tokens(state["tokens"], own, positions, own)
        yield f"put_tokens {num_seqs}", float(not torch.equal(written.cpu(), state["tokens"]))


def check_penalties(dtype: torch.dtype, quick: bool) -> Errors:
    vocab_size, rows = 3000, 6
    tokens = torch.randint(vocab_size, (rows, 4000), device=DEVICE, dtype=torch.int32)
    tokens[:, ::3] = 7  # often the same: atomics collide
    row_ids = torch.randperm(rows, device=DEVICE).to(torch.int32)
    prompt = torch.tensor([0, 5, 1000, 3999, 20, 1], dtype=torch.int32, device=DEVICE)
    total = torch.tensor([4000, 5, 3000, 4000, 21, 1025], dtype=torch.int32, device=DEVICE)
    numbers = torch.tensor([(1.3, 0, 0), (0.8, 0.5, -0.25), (1.5, 1, 1), (1, 0, 0.01), (1, 2, 0), (1, 0, 0)],
                           device=DEVICE, dtype=torch.float32)
    logits = torch.randn(rows, vocab_size, device=DEVICE)
    right = [cases.penalized(row, tokens[r, :p].tolist(), tokens[r, p:t].tolist(), *n) for row, r, p, t, n in
             zip(logits, row_ids.tolist(), prompt.tolist(), total.tolist(), numbers.tolist())]
    ops.apply_penalties(logits, tokens, row_ids, prompt, total, *numbers.T.contiguous())
    yield "apply_penalties", cases.relative_error(logits, torch.stack(right))


def check_token_masks(dtype: torch.dtype, quick: bool) -> Errors:
    for vocab_size, rows in ((7, 3), (49152, 5), (151936, 64)):
        places = torch.randperm(rows + 2)[:rows].int()
        masks = torch.randint(-2**31, 2**31 - 1, (rows, -(-vocab_size // 32)), dtype=torch.int32)
        logits = torch.randn(rows + 2, vocab_size)
        found = logits.to(DEVICE)
        ops.mask_tokens(found, places.to(DEVICE), masks.to(DEVICE))
        ops.mask_tokens(logits, places, masks)
        yield f"mask_tokens {vocab_size}", float(not torch.equal(found.cpu(), logits))


def check_sampling(dtype: torch.dtype, quick: bool) -> Errors:
    """Against the reference on the CPU: the share of rows whose token differs, less a rounding's worth."""
    for vocab_size, rows, spread in ((7, 300, 2.0), (32000, 64, 2.5), (152064, 16, 1.0)):
        logits = (torch.randn(rows, vocab_size, device=DEVICE) * spread).to(dtype)
        seeds = torch.randint(-2**63, 2**63 - 1, (rows,), device=DEVICE)
        positions = torch.randint(1 << 20, (rows,), dtype=torch.int32, device=DEVICE)
        temperature = torch.rand(rows, device=DEVICE) + 0.3
        temperature[::4] = 0
        for k, p, m in ((0, 1.0, 0.0), (1, 1.0, 0.0), (50, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.05), (200, 0.8, 0.01)):
            args = [logits, temperature, torch.full((rows,), k, dtype=torch.int32, device=DEVICE),
                    torch.full((rows,), p, device=DEVICE), torch.full((rows,), m, device=DEVICE), seeds, positions]
            filtered = (k, p, m) != (0, 1.0, 0.0)
            ours = ops.sample(*args, filtered=filtered).cpu()
            right = ops.sample(*(a.cpu() for a in args), filtered=filtered)
            differing = float((ours != right).float().mean())
            yield f"sample v{vocab_size} k{k} p{p} m{m}: {differing:.3f} differ", max(0.0, differing - 0.05)


def check_logprobs(dtype: torch.dtype, quick: bool) -> Errors:
    for vocab, num_top in ((5000, 5), (152064, 20), (50257, 20)):
        logits = torch.randn(9, vocab, device=DEVICE).to(dtype) * 3
        token_ids = torch.randint(vocab, (9,), device=DEVICE, dtype=torch.int32)
        right = logits.double().log_softmax(-1)
        logprob, rank, top_ids, top = ops.logprobs(logits, token_ids, num_top)
        chosen = right.gather(1, token_ids.long().unsqueeze(1))
        yield f"logprob v{vocab}", cases.relative_error(logprob, chosen.squeeze(1))
        yield f"rank v{vocab}", cases.relative_error(rank, (right > chosen).sum(1) + 1)
        yield f"top ids v{vocab}", cases.relative_error(top, right.gather(1, top_ids.long()))
        yield f"top v{vocab}", cases.relative_error(top, right.topk(num_top).values)
        for alone, among in zip(ops.logprobs(logits[:1], token_ids[:1], num_top), (logprob, rank, top_ids, top)):
            yield f"alone v{vocab}", 0.0 if torch.equal(alone, among[:1]) else 1.0


def check_fixed_product(dtype: torch.dtype, quick: bool) -> Errors:
    for num_outputs, size in ((896, 4864), (9000, 130), (18944, 512)):
        x, weight, bias = (torch.randn(*shape, device=DEVICE, dtype=dtype) / size ** 0.25
                           for shape in ((1000, size), (num_outputs, size), (num_outputs,)))
        whole = ops.fixed_product(x, weight, bias)
        yield f"fixed product {size}x{num_outputs}", cases.relative_error(whole, cases.product(x, weight, bias))
        for part in (slice(0, 1), slice(7, 40), slice(100, 300), slice(300, 1000)):
            yield "its rows alone", 0.0 if torch.equal(ops.fixed_product(x[part], weight, bias), whole[part]) else 1.0


def check_wide_product(dtype: torch.dtype, quick: bool) -> Errors:
    for num_rows, num_outputs, size, kind in ((2048, 4864, 896, "silu"), (2500, 1000, 72, "gelu"),
                                              (8192, 4864, 896, "gelu_tanh"), (5001, 300, 1032, "silu")):
        x, weight = (torch.randn(n, size, device=DEVICE, dtype=dtype) for n in (num_rows, 2 * num_outputs))
        x /= size ** 0.5  # a product of two results must fit float16
        yield f"wide gated product {kind} {num_rows}x{size}x{num_outputs}", cases.relative_error(
            ops.wide_gated_product(x, weight, None, kind),
            cases.gated_activation(cases.product(x, weight, None).to(dtype), kind))


def check_product(dtype: torch.dtype, quick: bool) -> Errors:
    shapes = [(1, 1), (20, 33), (896, 4864), (1152, 896), (896, 8960), (4096, 4096), (12288, 4096), (32001, 896)]
    for (num_outputs, size), num_rows in itertools.product(shapes, (1, 3, 16, 17, 32)):
        x = torch.randn(num_rows, size + 8, device=DEVICE, dtype=dtype)[:, :size]
        weight = torch.randn(num_outputs, size, device=DEVICE, dtype=dtype)
        bias = torch.randn(num_outputs, device=DEVICE, dtype=dtype) if num_rows > 1 else None
        yield (f"product {num_rows}x{size}x{num_outputs}",
               cases.relative_error(ops.skinny_product(x, weight, bias), cases.product(x, weight, bias)))
        if num_outputs % 2 == 0:
            small = x / size ** 0.5  # a product of two results must fit float16
            yield (f"gated product {num_rows}x{size}x{num_outputs}", cases.relative_error(
                ops.skinny_gated_product(small, weight, bias, "silu"),
                cases.gated_activation(cases.product(small, weight, bias).to(dtype), "silu")))


def check_packed_product(dtype: torch.dtype, quick: bool) -> Errors:
    """Each kind with groups of every size that a format has; rows for each of the kernel's tiles, and beyond."""
    forms: list[tuple[Kind, int, bool, bool]] = [
        ("int4", 128, False, False), ("int4", 128, True, False), ("int4", 32, True, False), ("int4", 0, False, False),
        ("int8", 0, False, False), ("int8", 32, True, False), ("e4m3", 0, False, False), ("e4m3", 128, False, False),
        ("e2m1", 32, False, False), ("e2m1", 16, False, True), ("nf4", 64, False, False)]
    shapes = [(1, 33), (20, 96), (896, 4864), (4096, 4096)]
    if not quick:
        shapes += [(1152, 896), (37888, 3584), (3584, 18944)]
    for (kind, group, with_zeros, with_outer), (num_outputs, size) in itertools.product(forms, shapes):
        weight, right = cases.packed_weight(kind, num_outputs, size, group or size, with_zeros=with_zeros,
                                            with_outer=with_outer, device=DEVICE)
        name = f"{kind} of {group} {size}x{num_outputs}"
        yield f"unpack {name}", cases.relative_error(ops.unpack(weight, dtype), right)
        for num_rows in (1, 3, 16, 17, 40, 64, 100, 200, 300):
            x = torch.randn(num_rows, size + 8, device=DEVICE, dtype=dtype)[:, :size]
            bias = torch.randn(num_outputs, device=DEVICE, dtype=dtype) if num_rows > 1 else None
            yield (f"packed product {num_rows} {name}",
                   cases.relative_error(ops.packed_product(x, weight, bias), cases.product(x, right, bias)))


def check_eight_bit_product(dtype: torch.dtype, quick: bool) -> Errors:
    kinds: list[tuple[Kind, int]] = [("int8", 0), ("e4m3", 0), ("e4m3", 128)]
    shapes = [(20, 200), (896, 4864), (4096, 4096)] + ([] if quick else [(1152, 896), (37888, 3584)])
    for (kind, group), (num_outputs, size) in itertools.product(kinds, shapes):
        if not launch.multiplies(torch.device(DEVICE, torch.cuda.current_device()), kind):
            continue
        weight, right = cases.packed_weight(kind, num_outputs, size, group or size, device=DEVICE)
        words = weight.words
        for num_rows in (1, 65, 200, 513, 2000):
            x = torch.randn(num_rows, size, device=DEVICE, dtype=dtype)
            codes, scales = ops.round_rows(x, kind, group or size, words)
            rounded = ops.unpack(PackedWeight(kind, codes, scales.T.contiguous(), size, words, group or size),
                                 torch.float32)
            theirs = ops.round_rows(x.cpu(), kind, group or size, words)
            right_x = ops.unpack(PackedWeight(kind, theirs[0], theirs[1].T.contiguous(), size, words, group or size),
                                 torch.float32).to(DEVICE)
            # A scale's last bit may differ, and with it some number that lies between two others.
            yield f"round_rows {kind} {num_rows}x{size}", max(0.0, cases.relative_error(rounded, right_x) - 1e-3)
            out = ops.eight_bit_product(codes, scales, weight, None, dtype)
            error = cases.relative_error(out, cases.product(rounded, right, None))
            if kind == "e4m3":  # Hopper sums products of FP8 with some 14 bits
                error = max(0.0, error - 4e-4)
            yield f"eight bit product {kind} of {group} {num_rows}x{size}x{num_outputs}", error


CHECKS = [check_norms, check_layer_norms, check_head_norms, check_experts, check_activation, check_rotary,
          check_attention, check_attention_variants, check_coded_attention, check_copy, check_step, check_penalties,
          check_token_masks, check_sampling, check_logprobs, check_product, check_wide_product, check_fixed_product,
          check_packed_product, check_eight_bit_product]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer shapes")
    parser.add_argument("--only", default="", help="run the checks with this in their name")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    failures: list[str] = []
    for check in CHECKS:
        if options.only not in check.__name__:
            continue
        compile_ahead.kernels_of(partial(_carry_out, check, options.quick), torch.cuda.current_device())
        for dtype in dtypes():
            errors = list(check(dtype, options.quick))
            bad = [f"{name} {dtype}: {error:.2e}" for name, error in errors if not error < TOLERANCE[dtype]]
            worst_name, worst = max(errors, key=lambda item: (item[1] != item[1], item[1]))
            print(f"{check.__name__:<25}{str(dtype)[6:]:<10}{len(errors):>5} cases  worst {worst:.1e} ({worst_name})  "
                  f"{'FAILED' if bad else 'ok'}", flush=True)
            failures += bad
    for line in failures[:40]:
        print("FAILED", line)
    print(f"{len(failures)} failures")
    return 1 if failures else 0


def _carry_out(check: Callable[[torch.dtype, bool], Errors], quick: bool) -> None:
    for dtype in dtypes():
        for _ in check(dtype, quick):
            pass


if __name__ == "__main__":
    sys.exit(main())
