"""From logits to token ids, on the device, in this order: penalties, forbidden ids, sample; logprobs of the raw logits.

Called by ModelRunner once a step. A token is a pure function of its logits, its seed and its position: there is no
generator state, so a resumed, preempted or resharded request draws the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.engine.sampling.inputs import SamplingInputs
from quire.kernels import ops


@dataclass(slots=True)
class Sampled:
    token_ids: torch.Tensor  # [samples] int32
    # Where wanted: logprob [samples], rank [samples], top_ids [samples, k], top_logprobs [samples, k]
    logprobs: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None


def sample(logits: torch.Tensor, inputs: SamplingInputs) -> Sampled:
    """logits: [samples, vocab] of any float dtype; left unchanged."""
    edited = logits
    if inputs.penalized or inputs.forbidden is not None:
        edited = logits.to(torch.float32, copy=True)
    if inputs.penalized:
        ops.apply_penalties(edited, inputs.tokens, inputs.row_ids, inputs.num_prompt, inputs.positions,
                            inputs.repetition, inputs.presence, inputs.frequency)
    if inputs.forbidden is not None:
        edited[inputs.forbidden[0], inputs.forbidden[1]] = -torch.inf
    token_ids = ops.sample(edited, inputs.temperature, inputs.top_k, inputs.top_p, inputs.min_p, inputs.seeds,
                           inputs.positions, filtered=inputs.filtered)
    if inputs.num_top_logprobs < 0:
        return Sampled(token_ids, None)
    return Sampled(token_ids, ops.logprobs(logits, token_ids, inputs.num_top_logprobs))
