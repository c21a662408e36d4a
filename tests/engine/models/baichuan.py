"""Baichuan, which transformers has no model of: what it computes is written out here, over Llama's modules."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from quire.engine.layers import alibi
from tests.engine.models import tiny


def write(path: Path, architecture: str, *, has_alibi: bool, unit_head: bool, **config: Any) -> Baichuan:
    """As tiny.write: Llama's tensors under Baichuan's names."""
    heads = config.get("num_attention_heads", tiny.SIZES["num_attention_heads"])
    llama = tiny.write(path, "llama", num_key_value_heads=heads, **config)
    tensors = load_file(path / "model.safetensors")
    for i in range(llama.config.num_hidden_layers):
        block = f"model.layers.{i}.self_attn"
        packed = [tensors.pop(f"{block}.{name}_proj.weight") for name in "qkv"]
        tensors[f"{block}.W_pack.weight"] = torch.cat(packed)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    facts = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(facts | {"architectures": [architecture]}))
    return Baichuan(llama, has_alibi, unit_head)


class Baichuan(torch.nn.Module):
    def __init__(self, llama: PreTrainedModel, has_alibi: bool, unit_head: bool) -> None:
        super().__init__()
        self.llama, self.has_alibi, self.unit_head = llama, has_alibi, unit_head

    def forward(self, ids: torch.Tensor) -> SimpleNamespace:
        """[batch, tokens] -> logits [batch, tokens, vocab]"""
        hidden = self._with_alibi(ids) if self.has_alibi else self.llama.model(ids).last_hidden_state
        head = self.llama.lm_head.weight
        return SimpleNamespace(logits=F.linear(hidden, F.normalize(head) if self.unit_head else head))

    def _with_alibi(self, ids: torch.Tensor) -> torch.Tensor:
        model, heads = self.llama.model, self.llama.config.num_attention_heads
        x = model.embed_tokens(ids)
        places = torch.arange(ids.shape[1])
        bias = (alibi.slopes(heads)[:, None, None] * places).masked_fill(places > places[:, None], -torch.inf)
        for layer in model.layers:
            block, y = layer.self_attn, layer.input_layernorm(x)
            q, k, v = (projection(y).unflatten(-1, (heads, -1)).transpose(1, 2)
                       for projection in (block.q_proj, block.k_proj, block.v_proj))
            scores = (q @ k.transpose(2, 3)).float() / q.shape[-1] ** 0.5 + bias
            x = x + block.o_proj((scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return model.norm(x)
