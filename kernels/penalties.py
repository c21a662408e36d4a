"""Penalties in Triton: count the tokens of each sample, then edit its logits. Contract: kernels/reference/penalties.py.

Counting goes by atomics into one integer per vocabulary entry: output occurrences in the low bits, and a high bit for
"in the prompt".
"""

import torch
import triton
import triton.language as tl

from quire.kernels import launch

# Tensors cut out of larger ones: compiled once for any alignment.
_VARYING = ["row_ids", "num_prompt", "num_total", "repetition", "presence", "frequency"]


def apply_penalties(logits: torch.Tensor, tokens: torch.Tensor, row_ids: torch.Tensor, num_prompt: torch.Tensor,
                    num_total: torch.Tensor, repetition: torch.Tensor, presence: torch.Tensor,
                    frequency: torch.Tensor) -> None:
    num_samples, vocab_size = logits.shape
    assert logits.dtype == torch.float32
    assert logits.stride(1) == 1
    if num_samples == 0:
        return
    block = launch.PENALTY_BLOCK
    counts = torch.zeros((num_samples, vocab_size), dtype=torch.int32, device=logits.device)
    # The grids depend on shapes only; programs past a sample's end leave at once.
    _count[(num_samples, triton.cdiv(tokens.shape[1], block))](
        tokens, counts, row_ids, num_prompt, num_total, repetition, presence, frequency, tokens.stride(0), vocab_size,
        BLOCK=block)
    _apply[(num_samples, triton.cdiv(vocab_size, block))](
        logits, counts, repetition, presence, frequency, logits.stride(0), vocab_size, BLOCK=block)


@triton.jit(do_not_specialize=_VARYING)
def _count(tokens, counts, row_ids, num_prompt, num_total, repetition, presence, frequency, tokens_stride, vocab_size,
           BLOCK: tl.constexpr):
    sample = tl.program_id(0)
    first = tl.program_id(1) * BLOCK
    end = tl.load(num_total + sample)
    r, present, frequent = tl.load(repetition + sample), tl.load(presence + sample), tl.load(frequency + sample)
    if (first < end) & ((r != 1.0) | (present != 0.0) | (frequent != 0.0)):
        places = first + tl.arange(0, BLOCK)
        row = tl.load(row_ids + sample).to(tl.int64)
        ids = tl.load(tokens + row * tokens_stride + places, mask=places < end, other=0)
        prompt_end = tl.load(num_prompt + sample)
        entries = counts + sample.to(tl.int64) * vocab_size + ids
        tl.atomic_or(entries, 1 << 30, mask=(places < end) & (places < prompt_end))
        tl.atomic_add(entries, 1, mask=(places < end) & (places >= prompt_end))


@triton.jit(do_not_specialize=_VARYING)
def _apply(logits, counts, repetition, presence, frequency, logits_stride, vocab_size, BLOCK: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    r, present, frequent = tl.load(repetition + sample), tl.load(presence + sample), tl.load(frequency + sample)
    if (r != 1.0) | (present != 0.0) | (frequent != 0.0):
        ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = ids < vocab_size
        count = tl.load(counts + sample * vocab_size + ids, mask=inside, other=0)
        places = logits + sample * logits_stride + ids
        value = tl.load(places, mask=inside & (count != 0), other=0.0)
        value = tl.where(value > 0, value / r, value * r)
        in_output = count & ((1 << 30) - 1)
        value -= tl.where(in_output > 0, present + frequent * in_output.to(tl.float32), 0.0)
        tl.store(places, value, mask=inside & (count != 0))
