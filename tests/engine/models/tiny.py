"""Tiny random checkpoints, written by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "mistral": (MistralConfig, MistralForCausalLM),
            "qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}


def write(path: Path, family: str, max_shard_size: str = "1GB", **config: Any) -> PreTrainedModel:
    """Saves the checkpoint and returns transformers' model of it. Weights large enough that every term matters."""
    config_class, model_class = FAMILIES[family]
    torch.manual_seed(3)
    model = model_class(config_class(**{**SIZES, **config})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.25)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    return model


def logits(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """[tokens, vocab]"""
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0]
