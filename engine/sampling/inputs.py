"""What sampling needs to know of a step. Filled by `quire.engine.execution.model_runner`, one entry per sampling
row."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class SamplingInputs:
    """Device tensors, and what the host chose kernels by. `tokens` is the whole request table, read by row_ids."""

    tokens: torch.Tensor  # [rows, max_len] int32
    row_ids: torch.Tensor  # [samples] int32
    positions: torch.Tensor  # [samples] int32, position of the token to sample = tokens before it
    num_prompt: torch.Tensor  # [samples] int32
    temperature: torch.Tensor  # [samples] float32, and so on
    top_p: torch.Tensor
    min_p: torch.Tensor
    repetition: torch.Tensor
    presence: torch.Tensor
    frequency: torch.Tensor
    top_k: torch.Tensor  # [samples] int32
    seeds: torch.Tensor  # [samples] int64
    penalized: bool = False
    filtered: bool = False
    num_top_logprobs: int = -1  # -1: nobody wants logprobs
    forbidden: tuple[torch.Tensor, torch.Tensor] | None = None  # (places in the batch, token ids): min_tokens
