"""Compile every kernel for GPUs that are not here: `python -m quire.kernels.bench.compile_for [CAPABILITY ...]` (75 80
90).

Calls all kernels' wrappers with tensors in ordinary memory, while Triton is told of a GPU of that kind and launches
nothing. Shows that the installed Triton takes the kernels as they are and with the tiles of kernels/launch.py, and that
these fit; not what they compute (tests/kernels, in the interpreter, and check_gpu).
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Literal

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from quire.kernels import (
    activation,
    all_reduce,
    attention,
    blocks,
    eight_bit_product,
    experts,
    fixed_product,
    head_norm,
    launch,
    layer_norm,
    logprobs,
    norms,
    packed_product,
    penalties,
    product,
    rotary,
    routing,
    sampling,
    step,
    token_mask,
    wide_product,
)
from quire.kernels.attention_spec import Rotary, Style
from quire.kernels.bench import cases
from quire.kernels.packed_weight import Kind
from quire.kernels.reference import kv_codes

FAMILIES = {75: "default", 80: "ampere", 90: "hopper"}
SHARED_BYTES = {75: 64 << 10, 80: 163 << 10, 90: 227 << 10}  # a program's, at most
Call = tuple[str, Callable[[], object]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m quire.kernels.bench.compile_for", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capability", nargs="*", type=int, help="75, 80 or 90; all three if none is given")
    wanted = parser.parse_args().capability or list(FAMILIES)
    if unknown := set(wanted) - set(FAMILIES):
        parser.error(f"capability {min(unknown)}: only 75, 80 and 90 have tiles of their own")
    if not isinstance(norms._rms_norm, JITFunction):
        parser.error("TRITON_INTERPRET is set: nothing would be compiled")
    failed = 0
    for capability in wanted:
        began, compiled = time.monotonic(), pretend(capability)
        for dtype in [torch.float16 if capability == 75 else torch.bfloat16, torch.float32]:
            for name, call in calls(dtype):
                if complaint := complaint_about(call):
                    failed += 1
                    print(f"{capability} {str(dtype)[6:]} {name}: {complaint}", flush=True)
        for kernel in compiled:
            if kernel.metadata.shared > SHARED_BYTES[capability]:
                failed += 1
                print(f"{capability} {kernel.metadata.name}: {kernel.metadata.shared} bytes of shared memory")
        print(f"{capability}: {len(compiled)} kernels in {time.monotonic() - began:.0f} s", flush=True)
    return 1 if failed else 0


def complaint_about(call: Callable[[], object]) -> str:
    """The error that it raises, or what the compiler, which is no Python, says of it on standard error; "" if nothing.

    Triton goes on after most of these, with a loop that is not pipelined or the like.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said, os.fdopen(os.dup(2), "wb") as real:
        os.dup2(said.fileno(), 2)
        try:
            call()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            sys.stderr.flush()
            os.dup2(real.fileno(), 2)
        said.seek(0)
        return said.read().decode(errors="replace").strip()


def pretend(capability: int) -> list[Any]:
    """From now on launches compile for such a GPU, and no more. What they compiled turns up in the list."""
    target = GPUTarget("cuda", capability, 32)
    driver.set_active(SimpleNamespace(get_current_device=lambda: capability, get_current_stream=lambda device: 0,
                                      get_current_target=lambda: target))
    compiled: dict[int, Any] = {}

    def compile_only(self: Any, grid: object) -> Callable[..., None]:
        def call(*args: object, **options: object) -> None:
            kernel = self.run(*args, grid=grid, warmup=True, **options)
            compiled[id(kernel)] = kernel
            found[:] = compiled.values()
        return call

    found: list[Any] = []
    JITFunction.__getitem__ = compile_only
    launch._family = lambda index: FAMILIES[capability]  # type: ignore[assignment]
    launch._num_multiprocessors = lambda index: 132  # type: ignore[assignment]
    launch._capability = lambda index: divmod(capability, 10)  # type: ignore[assignment]
    for name in ("family", "num_multiprocessors", "decode_tile", "balanced_tile", "prefill_tile", "whole_prefill_tile",
                 "product_tile", "gated_product_tile", "wide_gated_tile", "experts_tile", "fixed_product_tile",
                 "packed_tile", "eight_bit_tile", "multiplies", "library_multiplies", "has_fast_logarithm",
                 "has_assembly", "code_reader", "early", "num_splits", "num_shared_splits"):
        real = getattr(getattr(launch, name), "asked_of_a_gpu", getattr(launch, name))
        getattr(real, "cache_clear", bool)()
        asked = functools.partial(real, torch.device("cuda", 0))
        there = functools.wraps(real)(lambda device, *args, asked=asked: asked(*args))
        there.asked_of_a_gpu = real  # type: ignore[attr-defined]
        setattr(launch, name, there)
    return found


def calls(dtype: torch.dtype) -> Iterator[Call]:
    def empty(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=of)

    def ints(*shape: int) -> torch.Tensor:
        return empty(*shape, of=torch.int32)

    for size in (576, 4096, 16384):
        x = empty(3, size)
        yield "rms_norm", functools.partial(norms.rms_norm, x, x[0], 1e-5)
        yield "add_rms_norm", functools.partial(norms.add_rms_norm, x, x, x[0], 1e-5)
        yield "add_rms_norm of a norm", functools.partial(norms.add_rms_norm, x, x, x[0], 1e-5, x[0].float())
        yield "layer_norm", functools.partial(layer_norm.layer_norm, x, x[0], x[0], 1e-5)
        yield "add_layer_norm", functools.partial(layer_norm.add_layer_norm, x, x, x[0], None, 1e-5)
    for num_experts, chosen in ((8, 2), (128, 8)):
        yield "route", functools.partial(routing.route, empty(3, num_experts), chosen, scoring="softmax",
                                         renormalize=True)
        for num_tokens in (1, 200, 2000):
            yield "gated_experts", functools.partial(
                experts.gated_experts, empty(num_tokens, 256), empty(num_experts, 512, 256),
                empty(num_experts, 256, 256), ints(num_tokens, chosen), empty(num_tokens, chosen, of=torch.float32),
                "silu")
    for head_dim in (64, 80, 128, 256):
        qkv = empty(3, 12, head_dim)
        yield "norm_heads", functools.partial(head_norm.norm_heads, qkv[:, :10], qkv[0, 0], qkv[0, 0], 8, 1e-6)
    for kind in ("silu", "gelu_tanh", "gelu", "relu", "quick_gelu"):
        yield f"{kind} alone", functools.partial(activation.activation, empty(3, 1025), kind)
    for kind in ("silu", "gelu_tanh", "gelu"):
        yield kind, functools.partial(activation.gated_activation, empty(3, 2050), kind)
    for head_dim in (64, 72, 80):
        yield "rotate", functools.partial(rotary.rotate, empty(9, 48, head_dim)[:, :32],
                                          Rotary(torch.zeros(9, head_dim)), ints(9))
    for heads, kv_heads, head_dim in ((9, 3, 64), (32, 32, 128), (28, 4, 128), (8, 8, 80)):
        yield from _attention(heads, kv_heads, head_dim, dtype)
        yield from _attention(heads, kv_heads, head_dim, dtype, is_fresh=True)
    yield from _attention(71, 1, 64, dtype, is_fresh=True)
    yield from _attention(48, 1, 128, dtype, is_fresh=True)
    yield from _attention(8, 4, 256, dtype, is_fresh=True, window=300, softcap=50.0)
    yield from _attention(64, 8, 64, dtype, is_fresh=True, window=128, sinks=True)
    yield from _attention(40, 40, 128, dtype, alibi=True)
    if dtype.itemsize == 2 or launch.family(torch.device("cuda", 0)) != "default":
        # A step over a float32 head of 512 takes 96 KiB of shared memory, and Turing has 64.
        yield from _attention(4, 2, 512, dtype, is_fresh=True, style="interleaved")
    launch.set_batch_invariant(True)
    yield from _attention(28, 4, 128, dtype, is_fresh=True)
    yield from _attention(8, 4, 256, dtype, is_fresh=True, window=300, softcap=50.0)
    launch.set_batch_invariant(False)
    for kv_type in kv_codes.TYPES:
        yield from _attention(28, 4, 128, dtype, codes=kv_type)
        yield from _attention(14, 2, 64, dtype, is_fresh=True, codes=kv_type)
    yield from _attention(28, 4, 128, dtype, is_fresh=True, codes=torch.float8_e4m3fn)
    yield from _attention(71, 1, 64, dtype, is_fresh=True, codes=torch.float8_e4m3fn)
    yield from _attention(8, 4, 256, dtype, is_fresh=True, window=300, softcap=50.0, codes=torch.float8_e4m3fn)
    yield from _attention(4, 2, 512, dtype, codes=torch.float8_e4m3fn)
    caches = empty(9, 3, 16, 80), empty(9, 3, 16, 80)
    yield "copy_blocks", functools.partial(blocks.copy_blocks, *caches, ints(3), ints(3))
    state = ints(9, 4097), ints(7, 9, 256), empty(6, 9, of=torch.float32), ints(9), empty(9, of=torch.int64)
    for n in (1, 8, 1024):
        for deltas in (None, ints(9)):
            yield "gather_step", functools.partial(step.gather_step, ints(n), ints(n), ints(n), ints(n), *state, 16,
                                                   deltas)
        yield "put_tokens", functools.partial(step.put_tokens, state[0], ints(n), ints(n), ints(n))
    numbers = [empty(6, of=torch.float32) for _ in range(3)]
    yield "apply_penalties", functools.partial(penalties.apply_penalties, empty(6, 3000, of=torch.float32), state[0],
                                               ints(6), ints(6), ints(6), *numbers)
    yield "mask_tokens", functools.partial(token_mask.mask_tokens, empty(6, 3000, of=torch.float32), ints(6),
                                           ints(6, 94))
    for filtered in (False, True):
        yield "sample", functools.partial(sampling.sample, empty(6, 32000), numbers[0], ints(6), numbers[1], numbers[2],
                                          empty(6, of=torch.int64), ints(6), filtered=filtered)
    yield "logprobs", functools.partial(logprobs.logprobs, empty(6, 32000), ints(6), 5)
    for num_rows in (1, 32):
        for num_outputs, size in ((1152, 896), (896, 4864), (4096, 4096), (12288, 4096), (32001, 896)):
            x, weight = empty(num_rows, size), empty(num_outputs, size)
            for bias in (None, empty(num_outputs)):
                yield "skinny_product", functools.partial(product.skinny_product, x, weight, bias)
        for num_outputs, size in ((9728, 896), (22016, 4096)):
            yield "skinny_gated_product", functools.partial(product.skinny_gated_product, empty(num_rows, size),
                                                            empty(num_outputs, size), None, "silu")
    for num_rows in (2048, 5000):
        yield "wide_gated_product", functools.partial(wide_product.wide_gated_product, empty(num_rows, 896),
                                                      empty(256, 896), None, "silu")
    for num_outputs, size in ((896, 4864), (9000, 130), (32001, 896)):
        for num_rows, bias in ((3, None), (3, empty(num_outputs)), (1000, None)):
            yield "fixed_product", functools.partial(fixed_product.fixed_product, empty(num_rows, size),
                                                     empty(num_outputs, size), bias)
    packed: list[tuple[Kind, int, bool]] = [
        ("int4", 128, False), ("int4", 32, True), ("int8", 4096, False), ("e4m3", 4096, False), ("e4m3", 128, False),
        ("nf4", 64, False), ("e2m1", 32, False), ("e2m1", 16, False)]
    for kind, group, with_zeros in packed:
        codes, _ = cases.packed_weight(kind, 256, 4096, group, with_zeros=with_zeros, with_outer=group == 16)
        yield f"unpack {kind}", functools.partial(packed_product.unpack, codes, dtype)
        for num_rows in (1, 20, 64, 200):
            yield f"packed_product {kind} {group}", functools.partial(packed_product.packed_product,
                                                                      empty(num_rows, 4096), codes, None)
    eight_bits: list[tuple[Literal["int8", "e4m3"], int]] = [("int8", 4096), ("e4m3", 4096), ("e4m3", 128)]
    for kind, group in eight_bits:
        if not launch.multiplies(torch.device("cuda", 0), kind):
            continue
        codes, _ = cases.packed_weight(kind, 256, 4096, group)
        yield f"round_rows {kind}", functools.partial(eight_bit_product.round_rows, empty(3, 4096), kind, group,
                                                        codes.words)
        for num_rows in (40, 200, 2000):
            yield f"eight_bit_product {kind} {group}", functools.partial(
                eight_bit_product.eight_bit_product, ints(num_rows, 1024),
                empty(num_rows, 4096 // group, of=torch.float32), codes, None, dtype)
    for ranks in (2, 8):
        x, addresses = empty(4, 5120), empty(ranks, of=torch.int64)
        for packet_rows in (0, 4):
            peers = all_reduce.Peers(0, ranks, addresses, addresses, addresses, ints(4), ints(packet_rows), 4, 5120,
                                     dtype)
            yield "all_reduce", functools.partial(all_reduce.all_reduce, x, peers)
            yield "and norm", functools.partial(all_reduce.all_reduce_add_rms_norm, x, x, x[0], 1e-5, peers)


def _attention(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, *, is_fresh: bool = False,
               style: Style = "half", **variant: Any) -> Iterator[Call]:
    name = f"attention {heads}/{kv_heads} of {head_dim}{', fresh' * is_fresh} {variant}"
    steps: list[tuple[list[int], list[int], int]] = [
        ([2000], [1], 0), ([20] * 200, [1] * 200, 0), ([2048], [2048], 0), ([40, 300, 100], [1, 100, 100], 0),
        ([1200] * 20, [1] * 20, 64)]
    for contexts, queries, num_shared_blocks in steps:
        case = cases.paged(contexts, queries, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype,
                           device="cpu", num_shared_blocks=num_shared_blocks, **variant)
        args = case.q, case.k_cache, case.v_cache, case.inputs, case.spec
        if not is_fresh:
            yield name, functools.partial(attention.paged_attention, *args)
            continue
        k = torch.zeros(case.q.shape[0], kv_heads, head_dim, dtype=dtype)
        for moved in (False, True):
            turns = Rotary(torch.zeros(max(contexts), head_dim), style, moved)
            yield name, functools.partial(attention.paged_attention, *args, (k, k, turns))


if __name__ == "__main__":
    sys.exit(main())
