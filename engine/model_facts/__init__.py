"""What each family's config.json says, in the names that most families use: a file a family whose names differ.

A family's `facts(hf)` gets the parsed config.json and returns it with the standard names filled in: hidden_size,
intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads (None: as many as query heads), head_dim,
max_position_embeddings, hidden_act, tie_word_embeddings, rope_parameters, layer_windows. Imports no torch: the front
end reads facts too.
"""

from __future__ import annotations

from typing import Any


def renamed(hf: dict[str, Any], **names: str) -> dict[str, Any]:
    """`hf`, with hf[theirs] also under our name wherever it is there: renamed(hf, hidden_size="n_embd")."""
    return {**hf, **{ours: hf[theirs] for ours, theirs in names.items() if theirs in hf}}
