"""A decoder: embedding, layers dealt out to pipeline stages, final norm, head. Families say how they differ.

Refuses to know what is in a layer. A family's file states the names of its tensors, makes its layers, and where needed
has an `embed`, norms or a head of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quire.engine.attention.inputs import AttentionInputs
from quire.engine.attention.paged import PagedAttention
from quire.engine.errors import ConfigError
from quire.engine.layers.decoder_layer import DecoderLayer
from quire.engine.layers.norm import LayerNorm, Norm
from quire.engine.layers.product import product
from quire.engine.layers.qkv import Heads
from quire.engine.layers.vocab import VocabEmbedding, VocabHead, has_packed_rows
from quire.engine.model_config import ModelConfig
from quire.engine.models.base import CausalLM, KVCaches
from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import View
from quire.kernels.attention_spec import AttentionSpec, Rotary


@dataclass(frozen=True, slots=True)
class Names:
    """Where a family's checkpoints keep what. All but the head are under `body`, which some files leave out."""

    body: str = "model"
    embedding: str = "embed_tokens"
    layers: str = "layers"
    norm: str = "norm"
    head: str = "lm_head"


class DecoderModel(CausalLM):
    """Raises ConfigError where the configuration asks for what the family does not do here."""

    names = Names()
    head_bias = False
    slopes: torch.Tensor | None = None  # [heads of all ranks], of families with ALiBi

    def __init__(self, config: ModelConfig, max_model_len: int, view: View, parallel: Parallel) -> None:
        self.config = config
        self.max_model_len = max_model_len
        self.parallel = parallel
        self.stage = stage = parallel.stage
        self.heads = Heads.of(config.num_heads, config.num_kv_heads, config.head_dim, parallel)
        self.num_kv_heads = self.heads.num_kv_mine
        self.head_dim = config.head_dim
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.dtype = view.dtype
        self.device = view.device
        self.embedding_size = config.hidden_size
        body = self.body(view)
        self.prepare(view)
        mine = stage.share(config.num_layers)
        self.num_layers = len(mine)
        self.kv_groups = config.kv_groups.of_layers(mine)
        layers = [self.make_layer(i, held(body.sub(f"{self.names.layers}.{i}"), i in mine))
                  for i in range(config.num_layers)]
        self.layers = [layers[i] for i in mine]
        self.norm = self.final_norm(held(body.sub(self.names.norm), stage.is_last))
        self._make_ends(view, body.sub(self.names.embedding))

    # What a family says

    def prepare(self, view: View) -> None:
        """What layers share, such as tables of positions. Called before the first layer is made."""

    def make_layer(self, i: int, view: View) -> DecoderLayer:
        raise NotImplementedError

    def final_norm(self, view: View) -> Norm | None:
        return self.make_norm(view)

    def make_norm(self, view: View) -> Norm:
        return LayerNorm(view, self.hidden_size, self.config.hf.get("layer_norm_eps", 1e-5), self.parallel)

    def make_head(self, view: View) -> VocabHead:
        return VocabHead.load(view, self.vocab_size, self.embedding_size, self.parallel, bias=self.head_bias)

    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[tokens], [tokens] -> [tokens, hidden]."""
        return self.embedding(token_ids)

    def attention_spec(self, i: int) -> AttentionSpec:
        """What layer i's attention computes, of all ranks' heads."""
        heads = self.heads
        return AttentionSpec(heads.num, heads.num_kv, heads.dim, heads.dim ** -0.5, window=self.window(i),
                             slopes=self.slopes)

    # How it is carried out

    def need(self, name: str) -> Any:
        """That field of config.json. Raises ConfigError where it is missing."""
        if name not in self.config.hf:
            raise ConfigError(f"{self.config.path}: {name} is missing")
        return self.config.hf[name]

    def paged(self, i: int, rotary: Rotary | None) -> PagedAttention:
        """Layer i's attention, of this rank's heads."""
        return PagedAttention(self.attention_spec(i).of_heads(self.heads.mine, self.heads.kv_mine), rotary,
                              self.config.kv_groups.group_of[i])

    def window(self, i: int) -> int | None:
        """Tokens that layer i's attention sees; None: all."""
        return self.config.windows[i] if self.config.windows else None

    def is_last_layer(self, i: int) -> bool:
        return i == self.config.num_layers - 1

    def decode(self, hidden: torch.Tensor, inputs: AttentionInputs, kv_caches: KVCaches) -> torch.Tensor:
        residual = hidden
        update = None  # what the block before wants added to the residual; the next norm adds it
        for layer, kv_cache in zip(self.layers[-len(kv_caches):], kv_caches):
            update, residual = layer(update, residual, inputs, kv_cache)
        whole = self.layers[-1].whole_updates
        if self.stage.is_last and self.norm is not None:
            return self.norm(residual) if update is None else self.norm.add(update, residual, whole=whole)
        if update is None:
            return residual
        return residual.add_(update if whole else self.parallel.all_reduce(update))

    def body(self, view: View) -> View:
        """All but the head."""
        return view if self._is_bare(view) else view.sub(self.names.body)

    def _is_bare(self, view: View) -> bool:
        embedding = f"{self.names.embedding}.weight"
        return view.has(embedding) and not view.has(f"{self.names.body}.{embedding}")

    def _has_head(self, view: View) -> bool:
        """Not where the architecture is a base model's, or the files hold one: their names lack the body's, and there
        is neither a head nor one tied to the embedding."""
        if self.config.is_base_model:
            return False
        is_tied = self.config.hf.get("tie_word_embeddings", False)
        return is_tied or view.has(f"{self.names.head}.weight") or not self._is_bare(view)

    def _make_ends(self, view: View, embedded: View) -> None:
        stage = self.stage
        ends = (self.vocab_size, self.embedding_size, self.parallel)
        self.embedding = VocabEmbedding(held(embedded, stage.is_first), *ends)
        if not self._has_head(view):
            self.generates = False
            self.ignorable = rf"{self.ignorable}|^{self.names.head}\."
            return
        if not self.config.hf.get("tie_word_embeddings", False):
            self.head = self.make_head(held(view.sub(self.names.head), stage.is_last))
            return
        # Some tied checkpoints hold the head a second time.
        self.ignorable = rf"{self.ignorable}|^{self.names.head}\.weight$"
        if stage.is_last and not stage.is_first:
            self.head = VocabHead.load(embedded, *ends)
            return
        if has_packed_rows(embedded):
            self.head = VocabHead.load(held(embedded, stage.is_last), *ends)
        else:
            tied = product(self.embedding.weight, cpu_weights=view.cpu_weights)
            self.head = VocabHead(tied, self.vocab_size, self.parallel)
        if stage.is_last:
            self.embedding.share(embedded, self.head)


def held(view: View, here: bool) -> View:
    """The view that a layer takes its weights from, which is this rank's or not."""
    return view if here else view.elsewhere()
