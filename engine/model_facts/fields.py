"""What the fields of config.json may hold that are read here, whichever family has them.

Checked before anybody computes with them; null says nothing. A number far beyond what any model has is a mistake, and
would take memory or hours before it is found out. Refuses to know which family has which field and what it
means. Called by `quire.engine.weights.hf_config`; imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from quire.engine.arguments import shown
from quire.engine.errors import ConfigError
from quire.engine.model_facts.windows import FULL, SLIDING

MOST_LAYERS = 2**12
_WIDEST = 2**20
_MOST_POSITIONS = 2**31 - 1  # of 32 bits, on the device
_LARGEST = 10**15  # of factors, bases and the like

_COUNTS = {  # and the most that there may be
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), MOST_LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "num_kv_heads", "n_head_kv",
                     "num_local_experts", "num_experts", "num_experts_per_tok", "head_dim", "rotary_dim"), 2**14),
    **dict.fromkeys(("hidden_size", "n_embd", "n_embed", "d_model", "word_embed_proj_dim"), _WIDEST),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "moe_intermediate_size"), 2**24),
    **dict.fromkeys(("expansion_ratio", "decoder_sparse_step", "no_rope_layer_interval", "sliding_window_pattern",
                     "_sliding_window_pattern", "num_ln_in_parallel_attn"), _WIDEST),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length",
                     "original_max_position_embeddings", "sliding_window"), _MOST_POSITIONS),
    "vocab_size": 2**24,
}
_POSITIVE = ("rope_theta", "rotary_emb_base", "rope_local_base_freq", "embedding_multiplier", "attention_multiplier",
             "residual_multiplier", "logits_scaling", "query_pre_attn_scalar")
_SHARES = ("partial_rotary_factor", "rotary_pct")
_NOT_NEGATIVE = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "attn_logit_softcapping",
                 "final_logit_softcapping", "initializer_range", "max_window_layers")
_FLAGS = ("use_sliding_window", "attention_bias", "mlp_bias", "tie_word_embeddings", "alibi", "bias", "multi_query",
          "new_decoder_architecture", "parallel_attn", "use_parallel_residual", "scale_attn_weights", "no_bias",
          "scale_attn_by_inverse_layer_idx", "norm_topk_prob", "do_layer_norm_before", "_remove_final_layer_norm",
          "enable_bias", "layer_norm_elementwise_affine", "apply_residual_connection_post_layernorm",
          "use_bidirectional_attention")
_TEXTS = ("hidden_act", "hidden_activation", "activation_function", "activation")
_TABLES = ("rope_scaling", "rope_parameters", "attn_config")


def is_number(value: Any) -> bool:
    """No truth value, and neither infinite nor nothing at all."""
    return type(value) in (int, float) and math.isfinite(value)


def _is_flag(value: Any) -> bool:
    return type(value) in (bool, int) and value in (0, 1)


def _lists(is_item: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_item, value))


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(_POSITIVE, (lambda value: is_number(value) and 0 < value <= _LARGEST,
                                f"a positive number, {_LARGEST} at most")),
    **dict.fromkeys(_SHARES, (lambda value: is_number(value) and 0 < value <= 1, "a number above 0, and 1 at most")),
    **dict.fromkeys(_NOT_NEGATIVE, (lambda value: is_number(value) and 0 <= value <= _LARGEST,
                                    f"a number that is not negative, {_LARGEST} at most")),
    **dict.fromkeys(_FLAGS, (_is_flag, "true or false")),
    **dict.fromkeys(_TEXTS, (lambda value: isinstance(value, str), "a text")),
    **dict.fromkeys(_TABLES, (lambda value: isinstance(value, dict), "an object")),
    "layer_types": (_lists(lambda kind: kind in (FULL, SLIDING)), f"a list of {FULL!r} and {SLIDING!r}"),
    "no_rope_layers": (_lists(_is_flag), "a list of 0 and 1"),
    "mlp_only_layers": (_lists(lambda layer: type(layer) is int), "a list of layers' numbers"),
}


def refuse_malformed(hf: dict[str, Any]) -> None:
    """Raises ConfigError by the first field that holds what it cannot hold."""
    for name, most in _COUNTS.items():
        if hf.get(name) is not None:
            refuse_no_count(name, hf[name], most)
    for name, (is_right, what) in _RULES.items():
        if hf.get(name) is not None and not is_right(hf[name]):
            raise ConfigError(f"{name} must be {what}, is {shown(hf[name])}")


def refuse_no_count(name: str, value: Any, most: int | None = None) -> None:
    """Raises ConfigError. `most`: as of that name, if it is not said."""
    most = most or _COUNTS[name]
    if type(value) is not int or value < 1:
        raise ConfigError(f"{name} must be a positive integer, is {shown(value)}")
    if value > most:
        raise ConfigError(f"{name} must be at most {most}, is {shown(value)}")

