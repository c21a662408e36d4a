"""The one door to the kernels: a CPU tensor goes to `quire.kernels.reference`, a CUDA tensor to the Triton file of that
name.

The table below is the registry: a new kernel is one file here, one in reference/, one line in the table, one function.
Every function's contract is in the docstring of its reference. Triton is imported at the first CUDA call.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from quire.kernels.attention_spec import AttentionSpec, Fresh, Rotary
    from quire.kernels.packed_weight import PackedWeight
    from quire.kernels.reference.step import Gathered

_STEM = {
    "rms_norm": "norms",
    "add_rms_norm": "norms",
    "layer_norm": "layer_norm",
    "add_layer_norm": "layer_norm",
    "norm_heads": "head_norm",
    "gated_activation": "activation",
    "activation": "activation",
    "route": "routing",
    "gated_experts": "experts",
    "rotary_and_cache": "rotary",
    "rotate": "rotary",
    "paged_attention": "attention",
    "copy_blocks": "blocks",
    "apply_penalties": "penalties",
    "mask_tokens": "token_mask",
    "sample": "sampling",
    "logprobs": "logprobs",
    "gather_step": "step",
    "put_tokens": "step",
    "skinny_product": "product",
    "skinny_gated_product": "product",
    "wide_gated_product": "wide_product",
    "fixed_product": "fixed_product",
    "packed_product": "packed_product",
    "unpack": "packed_product",
    "round_rows": "eight_bit_product",
    "eight_bit_product": "eight_bit_product",
}
_PACKAGE = {"cpu": "quire.kernels.reference", "cuda": "quire.kernels"}


class _Functions(dict[str, Any]):
    """device type -> {name: function}, imported at the first use of that device type."""

    def __missing__(self, device_type: str) -> dict[str, Any]:
        package = _PACKAGE[device_type]
        table = {name: getattr(importlib.import_module(f"{package}.{stem}"), name) for name, stem in _STEM.items()}
        self[device_type] = table
        return table


_FUNCTIONS = _Functions()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return _FUNCTIONS[x.device.type]["rms_norm"](x, weight, eps)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float,
                 inner_weight: torch.Tensor | None = None) -> torch.Tensor:
    return _FUNCTIONS[x.device.type]["add_rms_norm"](x, residual, weight, eps, inner_weight)


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    return _FUNCTIONS[x.device.type]["layer_norm"](x, weight, bias, eps)


def add_layer_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None,
                   eps: float) -> torch.Tensor:
    return _FUNCTIONS[x.device.type]["add_layer_norm"](x, residual, weight, bias, eps)


def norm_heads(qk: torch.Tensor, q_weight: torch.Tensor, k_weight: torch.Tensor, num_q: int, eps: float) -> None:
    _FUNCTIONS[qk.device.type]["norm_heads"](qk, q_weight, k_weight, num_q, eps)


def activation(x: torch.Tensor, kind: str) -> torch.Tensor:
    return _FUNCTIONS[x.device.type]["activation"](x, kind)


def gated_activation(gate_up: torch.Tensor, kind: str) -> torch.Tensor:
    return _FUNCTIONS[gate_up.device.type]["gated_activation"](gate_up, kind)


def route(logits: torch.Tensor, num_chosen: int, *, scoring: str, renormalize: bool
          ) -> tuple[torch.Tensor, torch.Tensor]:
    return _FUNCTIONS[logits.device.type]["route"](logits, num_chosen, scoring=scoring, renormalize=renormalize)


def gated_experts(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor,
                  kind: str) -> torch.Tensor:
    return _FUNCTIONS[x.device.type]["gated_experts"](x, gate_up, down, ids, weights, kind)


def rotary_and_cache(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rotary: Rotary | None, positions: torch.Tensor,
                     slots: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, k_scale: float = 1.0,
                     v_scale: float = 1.0) -> None:
    _FUNCTIONS[q.device.type]["rotary_and_cache"](q, k, v, rotary, positions, slots, k_cache, v_cache, k_scale, v_scale)


def rotate(x: torch.Tensor, rotary: Rotary, positions: torch.Tensor) -> None:
    _FUNCTIONS[x.device.type]["rotate"](x, rotary, positions)


def paged_attention(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, inputs: Any, spec: AttentionSpec,
                    fresh: Fresh | None = None) -> torch.Tensor:
    """`inputs` is an quire.engine.attention.inputs.AttentionInputs."""
    return _FUNCTIONS[q.device.type]["paged_attention"](q, k_cache, v_cache, inputs, spec, fresh)


def copy_blocks(k_cache: torch.Tensor, v_cache: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> None:
    _FUNCTIONS[k_cache.device.type]["copy_blocks"](k_cache, v_cache, sources, targets)


def apply_penalties(logits: torch.Tensor, tokens: torch.Tensor, row_ids: torch.Tensor, num_prompt: torch.Tensor,
                    num_total: torch.Tensor, repetition: torch.Tensor, presence: torch.Tensor,
                    frequency: torch.Tensor) -> None:
    _FUNCTIONS[logits.device.type]["apply_penalties"](logits, tokens, row_ids, num_prompt, num_total, repetition,
                                                      presence, frequency)


def mask_tokens(logits: torch.Tensor, places: torch.Tensor, masks: torch.Tensor) -> None:
    _FUNCTIONS[logits.device.type]["mask_tokens"](logits, places, masks)


def sample(logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor,
           min_p: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, *, filtered: bool) -> torch.Tensor:
    return _FUNCTIONS[logits.device.type]["sample"](logits, temperature, top_k, top_p, min_p, seeds, positions,
                                                    filtered=filtered)


def logprobs(logits: torch.Tensor, token_ids: torch.Tensor,
             num_top: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return _FUNCTIONS[logits.device.type]["logprobs"](logits, token_ids, num_top)


def skinny_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return _FUNCTIONS[x.device.type]["skinny_product"](x, weight, bias)


def skinny_gated_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kind: str) -> torch.Tensor:
    return _FUNCTIONS[x.device.type]["skinny_gated_product"](x, weight, bias, kind)


def wide_gated_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kind: str) -> torch.Tensor:
    return _FUNCTIONS[x.device.type]["wide_gated_product"](x, weight, bias, kind)


def gather_step(rows: torch.Tensor, context_lens: torch.Tensor, token_rows: torch.Tensor, positions: torch.Tensor,
                tokens: torch.Tensor, block_tables: torch.Tensor, floats: torch.Tensor, top_k: torch.Tensor,
                seeds: torch.Tensor, block_size: int, deltas: torch.Tensor | None = None) -> Gathered:
    return _FUNCTIONS[rows.device.type]["gather_step"](rows, context_lens, token_rows, positions, tokens, block_tables,
                                                       floats, top_k, seeds, block_size, deltas)


def put_tokens(tokens: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor) -> None:
    _FUNCTIONS[rows.device.type]["put_tokens"](tokens, rows, positions, token_ids)


def fixed_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return _FUNCTIONS[x.device.type]["fixed_product"](x, weight, bias)


def packed_product(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    return _FUNCTIONS[x.device.type]["packed_product"](x, weight, bias)


def unpack(weight: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
    return _FUNCTIONS[weight.device.type]["unpack"](weight, dtype)


def round_rows(x: torch.Tensor, kind: str, group: int, words: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _FUNCTIONS[x.device.type]["round_rows"](x, kind, group, words)


def eight_bit_product(codes: torch.Tensor, scales: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None,
                      dtype: torch.dtype) -> torch.Tensor:
    return _FUNCTIONS[codes.device.type]["eight_bit_product"](codes, scales, weight, bias, dtype)
