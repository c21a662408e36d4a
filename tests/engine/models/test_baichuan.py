"""Baichuan has no model in transformers: what it computes is written out here, and its 7B form is Llama's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from quire.engine.layers import alibi
from tests.engine.models import tiny
from tests.engine.models.paging import PagedRun, load

PROMPT = [(31 * i + i * i) % tiny.SIZES["vocab_size"] for i in range(45)]


def checkpoint(path: Path, architecture: str, **config: int) -> dict[str, torch.Tensor]:
    """Llama's tensors under Baichuan's names."""
    tiny.write(path, "llama", num_key_value_heads=config.get("num_attention_heads", 4), **config)
    tensors = load_file(path / "model.safetensors")
    for i in range(3):
        block = f"model.layers.{i}.self_attn"
        packed = [tensors.pop(f"{block}.{name}_proj.weight") for name in "qkv"]
        tensors[f"{block}.W_pack.weight"] = torch.cat(packed)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    facts = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(facts | {"architectures": [architecture]}))
    return tensors


def with_alibi(tensors: dict[str, torch.Tensor], tokens: list[int], heads: int, unit_head: bool) -> torch.Tensor:
    """[tokens, vocab]"""
    x = tensors["model.embed_tokens.weight"][tokens]
    places = torch.arange(len(tokens))
    for i in range(3):
        def weight(name: str, i: int = i) -> torch.Tensor:
            return tensors[f"model.layers.{i}.{name}.weight"]

        q, k, v = F.linear(norm(x, weight("input_layernorm")), weight("self_attn.W_pack")).chunk(3, -1)
        q, k, v = (part.view(len(tokens), heads, -1).transpose(0, 1) for part in (q, k, v))
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + alibi.slopes(heads)[:, None, None] * places
        scores.masked_fill_(places > places[:, None], -torch.inf)
        attended = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + F.linear(attended, weight("self_attn.o_proj"))
        y = norm(x, weight("post_attention_layernorm"))
        x = x + F.linear(F.silu(F.linear(y, weight("mlp.gate_proj"))) * F.linear(y, weight("mlp.up_proj")),
                         weight("mlp.down_proj"))
    head = tensors["lm_head.weight"]
    return F.linear(norm(x, tensors["model.norm.weight"]), F.normalize(head) if unit_head else head)


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def test_the_first_7b_is_llama_with_q_k_and_v_in_one_tensor(tmp_path: Path) -> None:
    checkpoint(tmp_path, "BaiChuanForCausalLM")
    expected = tiny.logits(tiny.write(tmp_path / "llama", "llama", num_key_value_heads=4), PROMPT)
    torch.testing.assert_close(PagedRun(load(tmp_path), 1, 64).step({0: PROMPT})[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("heads", "vocab_size"), [(4, 96), (5, 96), (4, 125_696)])
def test_13b_has_alibi_and_version_two_a_head_of_unit_rows(heads: int, vocab_size: int, tmp_path: Path) -> None:
    tensors = checkpoint(tmp_path, "BaichuanForCausalLM", num_attention_heads=heads, hidden_size=80,
                         vocab_size=vocab_size)
    expected = with_alibi(tensors, PROMPT, heads, unit_head=vocab_size != 96)
    run = PagedRun(load(tmp_path), 1, 64)
    got = torch.cat([run.step({0: PROMPT[:30]})[0], *(run.step({0: [token]})[0] for token in PROMPT[30:])])
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_slopes_are_the_papers() -> None:
    torch.testing.assert_close(alibi.slopes(8), 2.0 ** -torch.arange(1.0, 9))
    torch.testing.assert_close(alibi.slopes(12)[8:], 2.0 ** -torch.tensor([0.5, 1.5, 2.5, 3.5]))
    assert len(alibi.slopes(40)) == len(alibi.mpt_slopes(40, 8.0)) == 40
