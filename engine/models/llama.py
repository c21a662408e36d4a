"""Llama 1 to 3, SmolLM2 and their look-alikes: RMS norms before attention and gated MLP, rotary positions.

Families that differ in a bias or a check subclass `Llama` in a file of their own.
"""

from __future__ import annotations

from typing import Any

import torch

from quire.engine.attention.inputs import AttentionInputs
from quire.engine.errors import ConfigError
from quire.engine.layers.mlp import GatedMLP
from quire.engine.layers.norm import RMSNorm
from quire.engine.layers.rotary import cos_sin_table
from quire.engine.layers.self_attention import SelfAttention
from quire.engine.layers.vocab import VocabEmbedding, VocabHead
from quire.engine.model_config import ModelConfig
from quire.engine.models.base import CausalLM, KVCaches
from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import View

DEFAULT_EPS = 1e-6


class Llama(CausalLM):
    def __init__(self, config: ModelConfig, max_model_len: int, view: View, parallel: Parallel) -> None:
        hf = config.hf
        if "intermediate_size" not in hf:
            raise ConfigError(f"{config.path}: intermediate_size is missing")
        qkv_bias, out_bias = self.attention_biases(hf)
        cos_sin = cos_sin_table(hf["rope_parameters"], config.head_dim, max_model_len, view.device,
                                _frequency_divisors(view, config.head_dim))
        body = view.sub("model")
        self._parallel = parallel
        self.stage = stage = parallel.stage
        kv_heads = parallel.share_kv_heads(config.num_kv_heads)
        self.num_kv_heads = kv_heads.stop - kv_heads.start
        self.head_dim = config.head_dim
        self.hidden_size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.dtype = view.dtype
        mine = stage.share(config.num_layers)
        self.num_layers = len(mine)
        layers = [DecoderLayer(_held(body.sub(f"layers.{i}"), i in mine), config, cos_sin, parallel, qkv_bias=qkv_bias,
                               out_bias=out_bias, is_last=i == config.num_layers - 1) for i in range(config.num_layers)]
        self.layers = [layers[i] for i in mine]
        self.norm = RMSNorm(_held(body.sub("norm"), stage.is_last), config.hidden_size,
                            hf.get("rms_norm_eps", DEFAULT_EPS), parallel)
        ends = (config.vocab_size, config.hidden_size, parallel)
        embedded = body.sub("embed_tokens")
        self.embedding = VocabEmbedding(_held(embedded, stage.is_first), *ends)
        if not hf.get("tie_word_embeddings", False):
            self.head = VocabHead.load(_held(view.sub("lm_head"), stage.is_last), *ends)
            return
        self.ignorable = rf"{CausalLM.ignorable}|^lm_head\.weight$"  # some tied checkpoints hold the head a second time
        if stage.is_last and not stage.is_first:
            self.head = VocabHead.load(embedded, *ends)
            return
        self.head = VocabHead(self.embedding.weight, config.vocab_size, parallel)
        if self.head.has_copied and stage.is_last:
            self.embedding.keep_as_stored(embedded)

    @staticmethod
    def attention_biases(hf: dict[str, Any]) -> tuple[bool, bool]:
        """Whether q, k and v have one, and whether the output has."""
        has_bias = bool(hf.get("attention_bias", False))
        return has_bias, has_bias

    def decode(self, hidden: torch.Tensor, inputs: AttentionInputs, kv_caches: KVCaches) -> torch.Tensor:
        residual = hidden
        update = None  # what the block before wants added to the residual; the next norm adds it
        for layer, kv_cache in zip(self.layers[-len(kv_caches):], kv_caches):
            update, residual = layer(update, residual, inputs, kv_cache)
        assert update is not None, "a stage has layers"
        if self.stage.is_last:
            return self.norm.add(update, residual)
        return residual.add_(self._parallel.all_reduce(update))


class DecoderLayer:
    def __init__(self, view: View, config: ModelConfig, cos_sin: torch.Tensor, parallel: Parallel, *, qkv_bias: bool,
                 out_bias: bool, is_last: bool) -> None:
        hf, hidden = config.hf, config.hidden_size
        eps = hf.get("rms_norm_eps", DEFAULT_EPS)
        self.input_norm = RMSNorm(view.sub("input_layernorm"), hidden, eps, parallel)
        self.attention = SelfAttention(view.sub("self_attn"), config, cos_sin, parallel, qkv_bias=qkv_bias,
                                       out_bias=out_bias)
        self.mlp_norm = RMSNorm(view.sub("post_attention_layernorm"), hidden, eps, parallel)
        self.mlp = GatedMLP(view.sub("mlp"), hidden, hf["intermediate_size"], hf.get("hidden_act", "silu"), parallel,
                            bias=bool(hf.get("mlp_bias", False)))
        self._is_last = is_last

    def __call__(self, update: torch.Tensor | None, residual: torch.Tensor, inputs: AttentionInputs,
                 kv_cache: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """update, residual: [tokens, hidden] -> the MLP's update, not yet added, and the residual.

        Adds `update`, then attention, to the residual: in place, except that a model's last layer goes on with a copy
        of the rows of `inputs.last_tokens`, and both results are [seqs, hidden]. Nobody asks for the others; of a
        long prompt, one layer less. Updates are a rank's part of a sum, which the adding completes.
        """
        x = self.input_norm(residual) if update is None else self.input_norm.add(update, residual)
        last_tokens = inputs.last_tokens if self._is_last else None
        x = self.attention(x, inputs, kv_cache, only_last=last_tokens is not None)
        if last_tokens is not None:
            residual = residual.index_select(0, last_tokens)
        return self.mlp(self.mlp_norm.add(x, residual)), residual


def _held(view: View, here: bool) -> View:
    return view if here else view.elsewhere()


def _frequency_divisors(view: View, head_dim: int) -> torch.Tensor | None:
    """GGUF's form of llama3 rope scaling."""
    if not view.has("rope_freqs.weight"):
        return None
    # float32 on the CPU, wherever and whatever the model is
    return view.take("rope_freqs.weight", (head_dim // 2,), out=torch.empty(head_dim // 2))
