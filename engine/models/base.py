"""What the model runner may ask of any model.

A model is built with its weights and never changes; it keeps nothing between calls.
"""

from __future__ import annotations

import re

import torch

from engine.attention.inputs import AttentionInputs
from engine.layers.vocab import VocabEmbedding, VocabHead

KVCaches = list[tuple[torch.Tensor, torch.Tensor]]  # a layer each; [num_blocks, num_kv_heads, block_size, head_dim]


class CausalLM:
    """Base of every family. A subclass's `__init__` takes (ModelConfig, max_model_len, View, Parallel)."""

    # Names of tensors that checkpoints may hold and no layer wants: buffers that are computed here.
    ignorable: str = r"rotary_emb\.inv_freq$"

    num_layers: int
    num_kv_heads: int  # this rank's
    head_dim: int
    vocab_size: int
    embedding: VocabEmbedding
    head: VocabHead

    def forward(self, token_ids: torch.Tensor, inputs: AttentionInputs, kv_caches: KVCaches) -> torch.Tensor:
        """[tokens] -> [tokens, hidden], after the final norm. Writes this step's K and V into the caches."""
        raise NotImplementedError

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, hidden] -> [n, vocab], the whole vocabulary on every rank."""
        return self.head(hidden)

    def ignores(self, tensor_name: str) -> bool:
        return re.search(self.ignorable, tensor_name) is not None
