"""Every family in several shapes: the one table that a new family joins by a line.

A case is transformers' model type and how its configuration differs from `tiny.SIZES`, by the names there where it has
them: transformers takes those for the last word, whatever the family's own names say.
"""

from __future__ import annotations

from typing import Any

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64,
            "short_factor": [1.0 + i / 9 for i in range(6)], "long_factor": [2.0 + i for i in range(6)]}
GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256}
BIGCODE = {**GPT2, "n_inner": 80}
GLM4 = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
NEOX = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
MINISTRAL3 = {**YARN, "original_max_position_embeddings": 32, "factor": 8.0, "llama_4_scaling_beta": 0.1}
MPT = {"hidden_size": 60, "max_seq_len": 256}
QWEN3_MOE = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "head_dim": 16}
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
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 8}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied-yarn": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 24}),
    "phi3": ("phi3", {"pad_token_id": 0, "sliding_window": None}),
    "phi3-longrope": ("phi3", {"pad_token_id": 0, "sliding_window": None, "num_attention_heads": 4, "head_dim": 16,
                               "original_max_position_embeddings": 64,
                               "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.75}}),
    "smollm3": ("smollm3", {"pad_token_id": 0, "num_hidden_layers": 4}),
    "glm4": ("glm4", {"pad_token_id": 0, "head_dim": 16, "rope_parameters": GLM4, "attention_bias": True}),
    "olmo2": ("olmo2", {"pad_token_id": 0}),
    "granite": ("granite", {"embedding_multiplier": 2.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5,
                            "logits_scaling": 1.5}),
    "ministral3": ("ministral3", {"pad_token_id": 0, "head_dim": 16, "rope_parameters": MINISTRAL3}),
    "gemma": ("gemma", {"pad_token_id": 0, "head_dim": 32}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}),
    "qwen3-moe": ("qwen3_moe", {**QWEN3_MOE, "decoder_sparse_step": 2}),
    "qwen3-moe-renormalized": ("qwen3_moe", {**QWEN3_MOE, "norm_topk_prob": True, "mlp_only_layers": [1]}),
    "gpt2": ("gpt2", GPT2),
    "gpt2-by-layer": ("gpt2", {**GPT2, "n_inner": 80, "scale_attn_by_inverse_layer_idx": True}),
    "gpt-bigcode": ("gpt_bigcode", BIGCODE),
    "gpt-bigcode-multi-head": ("gpt_bigcode", {**BIGCODE, "multi_query": False}),
    "gptj": ("gptj", {**GPT2, "rotary_dim": 12}),
    "gpt-neox": ("gpt_neox", {"rope_parameters": {**NEOX, "partial_rotary_factor": 0.5}}),
    "gpt-neox-serial": ("gpt_neox", {"rope_parameters": NEOX, "use_parallel_residual": False, "attention_bias": False}),
    "opt": ("opt", {"ffn_dim": 80, "word_embed_proj_dim": 64}),
    "opt-350m": ("opt", {"ffn_dim": 80, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "opt-galactica": ("opt", {"ffn_dim": 80, "word_embed_proj_dim": 64, "enable_bias": False,
                              "activation_function": "gelu"}),
    "falcon-7b": ("falcon", {"num_attention_heads": 4}),
    "falcon-40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 2}),
    "falcon-11b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    "falcon-serial": ("falcon", {"parallel_attn": False, "multi_query": False, "bias": True}),
    "falcon-rw": ("falcon", {"parallel_attn": False, "multi_query": False, "bias": True, "alibi": True}),
    "bloom": ("bloom", {}),
    "bloom-five-heads": ("bloom", {"num_attention_heads": 5, "hidden_size": 60}),
    "mpt": ("mpt", MPT),
    "mpt-five-heads": ("mpt", {**MPT, "num_attention_heads": 5, "attn_config": {"clip_qkv": 1.5}}),
    "mistral-window": ("mistral", {"sliding_window": 20}),
    "ministral": ("ministral", {"head_dim": 16, "sliding_window": 20, "layer_types": [FULL, SLIDING, SLIDING]}),
    "qwen2-windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "olmo3": ("olmo3", {"pad_token_id": 0, "sliding_window": 20, "layer_types": [SLIDING, SLIDING, FULL],
                        "rope_parameters": {FULL: YARN, SLIDING: {"rope_type": "default", "rope_theta": 10000.0}}}),
    "gemma2": ("gemma2", {"pad_token_id": 0, "head_dim": 16, "sliding_window": 20}),
    "gemma3": ("gemma3_text", {"pad_token_id": 0, "head_dim": 16, "sliding_window": 20,
                               "layer_types": [SLIDING, FULL, SLIDING]}),
}
