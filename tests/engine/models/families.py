"""Every family in several shapes: the one table that a new family joins by a line.

A case is transformers' model type (or "baichuan", which is none) and how its configuration differs from `tiny.SIZES`,
by the names there where it has them: transformers takes those for the last word, whatever the family's own names say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.engine.models import baichuan, tiny

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64,
            "short_factor": [1.0 + i / 9 for i in range(6)], "long_factor": [2.0 + i for i in range(6)]}
GLM4 = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
NEOX = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
MINISTRAL3 = {**YARN, "original_max_position_embeddings": 32, "factor": 8.0, "llama_4_scaling_beta": 0.1}
MPT = {"hidden_size": 60, "max_seq_len": 256}
QWEN3_MOE = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "head_dim": 16}
BAICHUAN = {"architecture": "BaichuanForCausalLM", "has_alibi": True, "unit_head": False, "hidden_size": 80}
FULL, SLIDING = "full_attention", "sliding_attention"

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-multi-head": ("llama", {"num_key_value_heads": 4}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("llama", {"head_dim": 32}),
    "llama-gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama-eps": ("llama", {"rms_norm_eps": 0.1}),
    "llama-llama3-rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama-linear-rope": ("llama", {"rope_parameters": LINEAR}),
    "llama-five-heads": ("llama", {"hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 1}),
    "llama-nine-heads-of-three": ("llama", {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "llama-dynamic-rope": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 64}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 8}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied-yarn": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 24}),
    "qwen3-tied-biases": ("qwen3", {"tie_word_embeddings": True, "attention_bias": True, "num_key_value_heads": 1,
                                    "head_dim": 16}),
    "phi3": ("phi3", {"pad_token_id": 0, "sliding_window": None}),
    "phi3-longrope": ("phi3", {"pad_token_id": 0, "sliding_window": None, "num_attention_heads": 4, "head_dim": 16,
                               "original_max_position_embeddings": 64,
                               "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.75}}),
    "phi3-longrope-short": ("phi3", {"pad_token_id": 0, "sliding_window": None, "head_dim": 16,
                                     "original_max_position_embeddings": 256,
                                     "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 256,
                                                         "partial_rotary_factor": 0.75}}),
    "smollm3": ("smollm3", {"pad_token_id": 0, "no_rope_layers": [1, 1, 0]}),
    "smollm3-untied-window": ("smollm3", {"pad_token_id": 0, "no_rope_layer_interval": 2, "use_sliding_window": True,
                                          "sliding_window": 20, "tie_word_embeddings": False, "attention_bias": True,
                                          "mlp_bias": True}),
    "glm4": ("glm4", {"pad_token_id": 0, "head_dim": 16, "rope_parameters": GLM4, "attention_bias": True}),
    "glm4-tied": ("glm4", {"pad_token_id": 0, "head_dim": 16, "rope_parameters": GLM4, "attention_bias": False,
                           "tie_word_embeddings": True}),
    "olmo2": ("olmo2", {"pad_token_id": 0}),
    "olmo2-one-kv-head": ("olmo2", {"pad_token_id": 0, "num_key_value_heads": 1, "attention_bias": True}),
    "granite": ("granite", {"embedding_multiplier": 2.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5,
                            "logits_scaling": 1.5}),
    "granite-tied-biases": ("granite", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True,
                                        "residual_multiplier": 0.5}),
    "ministral3": ("ministral3", {"pad_token_id": 0, "head_dim": 16, "rope_parameters": MINISTRAL3}),
    "gemma": ("gemma", {"pad_token_id": 0, "head_dim": 32}),
    "gemma-untied": ("gemma", {"pad_token_id": 0, "head_dim": 256, "num_key_value_heads": 1, "attention_bias": True,
                               "tie_word_embeddings": False}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}),
    "qwen3-moe": ("qwen3_moe", {**QWEN3_MOE, "decoder_sparse_step": 2}),
    "qwen3-moe-renormalized": ("qwen3_moe", {**QWEN3_MOE, "norm_topk_prob": True, "mlp_only_layers": [1]}),
    "gpt2": ("gpt2", {}),
    "gpt2-untied": ("gpt2", {"hidden_size": 60, "num_attention_heads": 5, "scale_attn_weights": False,
                             "tie_word_embeddings": False}),
    "gpt2-by-layer": ("gpt2", {"n_inner": 80, "scale_attn_by_inverse_layer_idx": True}),
    "gpt-bigcode": ("gpt_bigcode", {"n_inner": 80}),
    "gpt-bigcode-multi-head": ("gpt_bigcode", {"n_inner": 80, "multi_query": False}),
    "gptj": ("gptj", {"rotary_dim": 12}),
    "gpt-neox": ("gpt_neox", {"rope_parameters": {**NEOX, "partial_rotary_factor": 0.5}}),
    "gpt-neox-serial": ("gpt_neox", {"rope_parameters": NEOX, "use_parallel_residual": False, "attention_bias": False}),
    "gpt-neox-tied": ("gpt_neox", {"rope_parameters": {**NEOX, "partial_rotary_factor": 1.0},
                                   "tie_word_embeddings": True}),
    "opt": ("opt", {"ffn_dim": 80, "word_embed_proj_dim": 64}),
    "opt-350m": ("opt", {"ffn_dim": 80, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "opt-galactica": ("opt", {"ffn_dim": 80, "word_embed_proj_dim": 64, "enable_bias": False,
                              "activation_function": "gelu"}),
    "opt-untied": ("opt", {"ffn_dim": 80, "word_embed_proj_dim": 32, "layer_norm_elementwise_affine": False,
                           "tie_word_embeddings": False}),
    "falcon-7b": ("falcon", {"num_attention_heads": 4}),
    "falcon-40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 2}),
    "falcon-11b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    "falcon-multi-head": ("falcon", {"multi_query": False, "bias": True, "tie_word_embeddings": False}),
    "falcon-serial": ("falcon", {"parallel_attn": False, "multi_query": False, "bias": True}),
    "falcon-rw": ("falcon", {"parallel_attn": False, "multi_query": False, "bias": True, "alibi": True}),
    "bloom": ("bloom", {}),
    "bloom-five-heads": ("bloom", {"num_attention_heads": 5, "hidden_size": 60}),
    "bloom-forty-heads": ("bloom", {"num_attention_heads": 40, "hidden_size": 160, "tie_word_embeddings": False}),
    "bloom-normed-residual": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "mpt": ("mpt", MPT),
    "mpt-five-heads": ("mpt", {**MPT, "num_attention_heads": 5, "attn_config": {"clip_qkv": 1.5}}),
    "mpt-forty-heads": ("mpt", {**MPT, "hidden_size": 160, "num_attention_heads": 40,
                                "attn_config": {"softmax_scale": 0.4}}),
    "mistral-window": ("mistral", {"sliding_window": 20}),
    "mistral-window-within-a-block": ("mistral", {"sliding_window": 5, "num_key_value_heads": 1}),
    "mistral-window-never-full": ("mistral", {"sliding_window": 200}),
    "mixtral-window": ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 20,
                                   "tie_word_embeddings": True}),
    "phi3-window": ("phi3", {"pad_token_id": 0, "sliding_window": 33, "num_key_value_heads": 4,
                             "tie_word_embeddings": True}),
    "ministral": ("ministral", {"head_dim": 16, "sliding_window": 20, "layer_types": [FULL, SLIDING, SLIDING]}),
    "qwen2-windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "olmo3": ("olmo3", {"pad_token_id": 0, "sliding_window": 20, "layer_types": [SLIDING, SLIDING, FULL],
                        "rope_parameters": {FULL: YARN, SLIDING: {"rope_type": "default", "rope_theta": 10000.0}}}),
    "gemma2": ("gemma2", {"pad_token_id": 0, "head_dim": 16, "sliding_window": 20}),
    "gemma3": ("gemma3_text", {"pad_token_id": 0, "head_dim": 16, "sliding_window": 20,
                               "layer_types": [SLIDING, FULL, SLIDING]}),
    "gemma3-untied": ("gemma3_text", {"pad_token_id": 0, "head_dim": 256, "sliding_window": 16, "attention_bias": True,
                                      "query_pre_attn_scalar": 64, "final_logit_softcapping": 9.0,
                                      "tie_word_embeddings": False, "layer_types": [SLIDING, SLIDING, FULL]}),
    "baichuan-7b": ("baichuan", {**BAICHUAN, "architecture": "BaiChuanForCausalLM", "has_alibi": False}),
    "baichuan-13b": ("baichuan", {**BAICHUAN, "num_attention_heads": 5}),
    "baichuan-13b-forty-heads": ("baichuan", {**BAICHUAN, "num_attention_heads": 40, "hidden_size": 160}),
    "baichuan2-13b": ("baichuan", {**BAICHUAN, "hidden_size": 16, "vocab_size": 125_696, "unit_head": True}),
}


def write(path: Path, case: str) -> torch.nn.Module:
    """Saves the case's checkpoint, and returns the model that is right about it."""
    family, config = CASES[case]
    return baichuan.write(path, **config) if family == "baichuan" else tiny.write(path, family, **config)
