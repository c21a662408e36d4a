"""Steps of rubbish before the first request, so that none waits for a kernel's compiling or the device for memory.

All tokens go to block 0, of which nobody knows anything yet. What the largest step allocates stays with torch's
allocator, which cuts it up for the steps that come. Used by `model_runner`, and by `capacity` for the largest one.
"""

from __future__ import annotations

import msgspec
import torch

from quire.engine.config import EngineConfig
from quire.engine.messages import Sampling
from quire.engine.plan import NewRow, StepPlan
from quire.kernels import ops

_EVERYTHING = Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.1, logprobs=1)


def plans(config: EngineConfig, *, samples: bool = True) -> list[StepPlan]:
    """Steps that, kernel by kernel, use all kernels; of a model without a head, without `samples`."""
    return [plan if samples else _unsampled(plan) for plan in _plans(config)]


def worst_plan(config: EngineConfig, *, samples: bool = True) -> StepPlan:
    """As many rows as may run share the token budget, and sample with everything there is."""
    return _worst_plan(config) if samples else _unsampled(_worst_plan(config))


def _plans(config: EngineConfig) -> list[StepPlan]:
    long = min(config.max_num_batched_tokens, config.max_model_len - 1) - 1
    chunk = max(1, long // 2)
    return [
        _worst_plan(config),
        _prompts([long], Sampling()),
        # One decode, and the rest of a prompt of which the beginning is there; a block's copy.
        StepPlan(0, rows=[0, 1], starts=[long, chunk], num_tokens=[1, long - chunk], samples=[True, True],
                 num_decodes=1, new_rows=[_new_row(1, long, _EVERYTHING)], copy_sources=[0], copy_targets=[0]),
        # Decodes of so short a context that it is not taken in parts, in the last layer and in those before.
        StepPlan(0, rows=[0, 1], starts=[1, 0], num_tokens=[1, 2], samples=[True, True], num_decodes=1,
                 new_rows=[_new_row(1, 2, Sampling())]),
    ] if config.max_num_seqs > 1 and long > chunk else [_worst_plan(config)]


def mask_tokens(vocab_size: int, device: torch.device) -> None:
    """The kernel of a grammar's masks, which no plan uses that is made without one."""
    logits = torch.zeros(1, vocab_size, device=device)
    ops.mask_tokens(logits, torch.zeros(1, dtype=torch.int32, device=device),
                    torch.zeros(1, -(-vocab_size // 32), dtype=torch.int32, device=device))


def _worst_plan(config: EngineConfig) -> StepPlan:
    num_rows = min(config.max_num_seqs, config.max_num_batched_tokens)
    return _prompts([min(config.max_model_len - 1, config.max_num_batched_tokens // num_rows)] * num_rows,
                    _EVERYTHING)


def _prompts(lengths: list[int], sampling: Sampling) -> StepPlan:
    num_rows = len(lengths)
    return StepPlan(0, rows=list(range(num_rows)), starts=[0] * num_rows, num_tokens=lengths, samples=[True] * num_rows,
                    num_decodes=sum(length == 1 for length in lengths),
                    new_rows=[_new_row(row, length, sampling) for row, length in enumerate(lengths)])


def _unsampled(plan: StepPlan) -> StepPlan:
    return msgspec.structs.replace(plan, samples=[False] * len(plan.rows))


def _new_row(row: int, length: int, sampling: Sampling) -> NewRow:
    return NewRow(row, [0] * length, length, sampling, row)
