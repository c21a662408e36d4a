"""What the model runner may ask of any model.

A model is built with its weights and never changes; it keeps nothing between calls.
"""

from __future__ import annotations

import re

import torch

from quire.engine.attention.inputs import AttentionInputs
from quire.engine.kv_groups import KVGroups
from quire.engine.layers.mrope import MRope
from quire.engine.layers.vision.tower import Tower
from quire.engine.layers.vocab import VocabEmbedding, VocabHead
from quire.engine.parallel import Stage

KVCaches = list[tuple[torch.Tensor, torch.Tensor]]  # a layer each; [num_blocks, num_kv_heads, block_size, head_dim]


class CausalLM:
    """Base of every family. A subclass's `__init__` takes (ModelConfig, max_model_len, View, Parallel)."""

    # Names of tensors that checkpoints may hold and no layer wants: buffers that are computed here.
    ignorable: str = r"rotary_emb\.inv_freq$"

    can_be_captured = True  # by a CUDA graph
    generates = True  # False: there is no head, and `logits` is not to be asked for

    num_layers: int  # this stage's
    kv_groups: KVGroups  # of this stage's layers
    num_kv_heads: int  # this rank's
    head_dim: int
    hidden_size: int
    vocab_size: int
    dtype: torch.dtype
    device: torch.device
    stage: Stage
    mrope: MRope | None = None
    tower: Tower | None = None  # of a model that takes images, where this stage needs their features
    # Of the families of ours: of use on the first stage, and on the last.
    embedding: VocabEmbedding
    head: VocabHead

    def forward(self, token_ids: torch.Tensor, inputs: AttentionInputs, kv_caches: KVCaches) -> torch.Tensor | None:
        """[tokens] -> [tokens, hidden], after the final norm; None on a stage that handed its result to the next.

        With `inputs.last_tokens`, of each sequence its last one: [seqs, hidden]. Writes this step's K and V into the
        caches; with fewer caches than the stage has layers, only as many layers, the last ones, are carried out.
        """
        stage = self.stage
        if stage.is_first:
            hidden = self.embed(token_ids, inputs.positions)
            if inputs.media is not None:
                inputs.media.put(hidden)
        else:
            hidden = stage.receive(token_ids.shape[0], self.hidden_size, self.dtype, token_ids.device)
        hidden = self.decode(hidden, inputs, kv_caches)
        if stage.is_last:
            wanted = token_ids if inputs.last_tokens is None else inputs.last_tokens
            assert hidden.shape[0] == wanted.shape[0], "the last layer goes on with the last tokens alone"
            return hidden
        stage.send(hidden)
        return None

    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[tokens], [tokens] -> [tokens, hidden]."""
        raise NotImplementedError

    def decode(self, hidden: torch.Tensor, inputs: AttentionInputs, kv_caches: KVCaches) -> torch.Tensor:
        """[tokens, hidden] -> [tokens or seqs, hidden] through this stage's layers and, on the last, the final norm."""
        raise NotImplementedError

    def features(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, hidden] -> [n, width]: what the family's base model returns in transformers, and its head is given."""
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, hidden] -> [n, vocab], the whole vocabulary on every rank of the last stage."""
        return self.head(hidden)

    def ignores(self, tensor_name: str) -> bool:
        return re.search(self.ignorable, tensor_name) is not None
