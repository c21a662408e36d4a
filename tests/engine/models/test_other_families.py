"""Decoders that have no file here run by transformers' own code, through our cache, and give its logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.masking_utils import create_chunked_causal_mask
from transformers.models.llama import modeling_llama

from quire.engine.errors import ConfigError, WeightError
from quire.kernels import ops
from tests.engine.models import tiny
from tests.engine.models.families import CASES
from tests.engine.models.paging import PagedRun, load
from tests.engine.models.test_against_transformers import PROMPT

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("cohere", {"eos_token_id": 2, "logit_scale": 0.5}),
    "starcoder2": ("starcoder2", {}),
    "phi": ("phi", {"num_key_value_heads": 4}),
    "persimmon": ("persimmon", {"num_key_value_heads": 4}),
    "starcoder2-window": ("starcoder2", {"sliding_window": 20}),
    "exaone4": ("exaone4", {"layer_types": ["full_attention"] * 3, "sliding_window": None}),
    "native": ("llama", {}),
    "one-kv-head-unsaid": ("gpt_bigcode", {"n_inner": 80}),
    "no-kv-heads-though-said": ("opt", {"ffn_dim": 80, "word_embed_proj_dim": 64}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_logits_equal_transformers_however_the_prompt_is_cut(case: str, tmp_path: Path) -> None:
    family, config = OTHERS[case]
    reference = tiny.write(tmp_path, family, **config)
    model = load(tmp_path, model_impl="transformers")
    run, seconds = PagedRun(model, 2, 128), PROMPT[5:50]
    first = run.step({0: PROMPT[:20], 1: seconds[:-1]})
    parts = [first[0], *(run.step({0: PROMPT[i:i + 1]})[0] for i in range(20, 30)),
             run.step({1: seconds[-1:], 0: PROMPT[30:-4]})[0], *(run.step({0: PROMPT[-4:]}, only_last=True)[0],) * 4]
    expected = tiny.logits(reference, PROMPT).clone()
    expected[-4:-1] = expected[-1]  # which nobody asked for
    torch.testing.assert_close(torch.cat(parts), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(first[1], tiny.logits(reference, seconds)[:-1], atol=1e-4, rtol=1e-4)


def test_what_a_checkpoint_holds_beside_parameters_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(modeling_llama.LlamaMLP):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.register_buffer("scale", torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.scale

    monkeypatch.setattr(modeling_llama, "LlamaMLP", Scaled)
    reference = tiny.write(tmp_path, "llama")
    for buffer in (layer.mlp.scale for layer in reference.model.layers):
        buffer.fill_(3)
    reference.save_pretrained(tmp_path)
    logits = PagedRun(load(tmp_path, model_impl="transformers"), 1, 128).step({0: PROMPT})[0]
    torch.testing.assert_close(logits, tiny.logits(reference, PROMPT), atol=1e-4, rtol=1e-4)


def test_random_weights_do_without_a_checkpoint(tmp_path: Path) -> None:
    tiny.write(tmp_path, "qwen2")
    (tmp_path / "model.safetensors").unlink()
    run = PagedRun(load(tmp_path, model_impl="transformers", load_format="dummy"), 1, 128)
    assert run.step({0: PROMPT})[0].isfinite().all()


def test_one_token_s_keys_and_values_are_laid_out_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As kernels want them, and a tensor of one token counts as contiguous however it lies."""
    tiny.write(tmp_path, "qwen2")
    run = PagedRun(load(tmp_path, model_impl="transformers"), 1, 128)
    attention, strides = ops.paged_attention, []

    def seen(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, inputs: Any, spec: Any, fresh: Any) -> Any:
        strides.extend(x.stride() for x in (q, *fresh[:2]))
        return attention(q, k_cache, v_cache, inputs, spec, fresh)

    monkeypatch.setattr(ops, "paged_attention", seen)
    run.step({0: PROMPT[:1]})
    head_dim = strides[0][1]
    assert set(strides) == {(tiny.SIZES["num_attention_heads"] * head_dim, head_dim, 1),
                            (tiny.SIZES["num_key_value_heads"] * head_dim, head_dim, 1)}


def test_tensors_that_transformers_gives_other_names_are_refused_before_any_is_read(tmp_path: Path) -> None:
    tiny.write(tmp_path, "mixtral", num_local_experts=4)
    read: list[float] = []
    with pytest.raises(WeightError, match="is missing from the checkpoint; transformers gives new names"):
        load(tmp_path, model_impl="transformers", progress=lambda phase, fraction: read.append(fraction))
    assert not any(read)


@pytest.mark.parametrize(("changes", "said"), [
    ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "has an encoder"),
    ({"architectures": ["FooForCausalLM"], "layer_types": ["full_attention", "linear_attention"]},
     "recurrent state .linear_attention."),
    ({"architectures": ["FooForCausalLM"], "add_cross_attention": True}, "cross attention"),
    ({"architectures": ["FooForCausalLM"], "layer_types": 5, "num_hidden_layers": 10**9}, "must be at most 4096"),
    ({"architectures": ["FooForCausalLM"], "model_type": "cohere", "hidden_act": 5}, "neither a family|cannot be made"),
    ({"architectures": ["FooForCausalLM"], "model_type": "foo", "auto_map": {"AutoModelForCausalLM": "foo.Foo"}},
     "runs no code out of checkpoints"),
])
def test_what_cannot_run_is_refused_by_its_reason_before_weights_are_read(changes: dict[str, Any], said: str,
                                                                          tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    read: list[float] = []
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, progress=lambda phase, fraction: read.append(fraction))
    assert not any(read)


@pytest.mark.parametrize(("family", "changes", "said"), [
    ("diffllama", {}, "attends more than once in a layer"),
    ("doge", {}, "makes a mask of its own for attention"),
    ("llama", {"is_causal": False}, "lets tokens see those behind them"),
    ("chunks", {"attention_chunk_size": 32}, "lets tokens see others than those before them, or than those in"),
    ("llama", CASES["llama-dynamic-rope"][1], "turns each token by how long the sequences beside it are"),
    ("phi3", CASES["phi3-longrope"][1], "turns each token by how long the sequences beside it are"),
    ("modernbert-decoder", {"pad_token_id": 0}, "does more behind its last layer than is known here"),
    ("mixing", {}, "lets tokens see each other outside of attention"),
])
def test_what_our_attention_would_compute_wrongly_is_refused_before_anybody_is_served(
        family: str, changes: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if family == "mixing":
        monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: x.roll(1, 1))
    if family == "chunks":
        monkeypatch.setattr(modeling_llama, "create_causal_mask", create_chunked_causal_mask)
    tiny.write(tmp_path, "llama" if family in ("mixing", "chunks") else family, **changes)
    with pytest.raises(ConfigError, match=f"transformers' code of .* {said}.*; that is not supported"):
        load(tmp_path, model_impl="transformers", dtype="bfloat16")
    if family == "phi3":  # within what it was first trained on, all turn by the same
        load(tmp_path, model_impl="transformers", max_model_len=64)
