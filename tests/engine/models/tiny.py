"""Tiny random checkpoints, written by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZES = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}


def write(path: Path, family: str, max_shard_size: str = "1GB", **config: Any) -> PreTrainedModel:
    """Saves a checkpoint of transformers' model type `family`, and returns transformers' model of it.

    Sizes are SIZES unless `config` says otherwise; weights are large enough that every term matters.
    """
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **config})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_norm = weight.dim() == 1 and not name.endswith("bias") and not family.startswith("gemma")
            weight.normal_(1.0 if is_norm else 0.0, 0.25)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    return model


def logits(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """[tokens, vocab]"""
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0]


def logits_of(model: torch.nn.Module, rows: list[list[int]], context: int) -> list[torch.Tensor]:
    """[tokens, vocab] of each row, at the beginning of `context` tokens: what comes behind changes none of its logits,
    but a rotation that is stretched to the longest context turns as ours does.
    """
    ids = torch.zeros(len(rows), context, dtype=torch.long)
    for place, row in zip(ids, rows):
        place[:len(row)] = torch.tensor(row)
    with torch.inference_mode():
        return [logits[:len(row)] for logits, row in zip(model(ids).logits, rows)]
