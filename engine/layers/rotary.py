"""The table of rotary embedding: cos and sin of every position, with each way of stretching a model's context.

Refuses to know q and k: the rotation is a kernel. `rope` is `ModelConfig.hf["rope_parameters"]`, checked where it was
read. Called once a model.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from quire.engine.errors import ConfigError


def cos_sin_table(rope: dict[str, Any], rotary_dim: int, num_positions: int, device: torch.device,
                  frequency_divisors: torch.Tensor | None = None) -> torch.Tensor:
    """[num_positions, rotary_dim] float32: rotary_dim / 2 cosines, then as many sines.

    `frequency_divisors` [rotary_dim / 2] is how GGUF files bring a scaling that was worked out by their converter.

    Raises ConfigError for a part of a head that cannot be turned in pairs.
    """
    if rotary_dim < 2 or rotary_dim % 2:
        raise ConfigError(f"{rotary_dim} of a head's numbers are to be turned by positions (head_dim times "
                          "partial_rotary_factor), and it must be an even number of them")
    # On the CPU whatever the device is: the same table to the last bit everywhere.
    inverse = 1.0 / rope["rope_theta"] ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
    amplitude = 1.0
    if rope["rope_type"] == "linear":
        inverse = inverse / rope["factor"]
    elif rope["rope_type"] == "dynamic":
        inverse = _dynamic(rope, rotary_dim, num_positions)
    elif rope["rope_type"] == "longrope":
        inverse, amplitude = _longrope(inverse, rope, num_positions)
    elif rope["rope_type"] == "llama3":
        inverse = _llama3(inverse, rope)
    elif rope["rope_type"] == "yarn":
        inverse = _yarn(inverse, rope, rotary_dim)
        amplitude = _yarn_amplitude(rope)
    if frequency_divisors is not None:
        inverse = inverse / frequency_divisors.to("cpu", torch.float32)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), inverse)
    return torch.cat((angles.cos() * amplitude, angles.sin() * amplitude), dim=-1).to(device)


def _dynamic(rope: dict[str, Any], rotary_dim: int, num_positions: int) -> torch.Tensor:
    """A larger base for longer contexts (NTK-aware). Others take it for the context so far; K that was written stays as
    it is, so it is taken for the longest context here, once for all.
    """
    growth = rope["factor"] * max(num_positions / rope["original_max_position_embeddings"], 1.0) - (rope["factor"] - 1)
    base = rope["rope_theta"] * growth ** (rotary_dim / max(rotary_dim - 2, 1))
    return torch.as_tensor(1.0 / base ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim))


def _longrope(inverse: torch.Tensor, rope: dict[str, Any], num_positions: int) -> tuple[torch.Tensor, float]:
    """A factor for each wave, of two sets: for contexts as the model was first trained on, and for longer ones. The
    longest context decides, once for all, for the reason that `_dynamic` gives. Ding et al., "LongRoPE" (2024).
    """
    original = rope["original_max_position_embeddings"]
    name = "long_factor" if num_positions > original else "short_factor"
    factors = rope[name]
    if len(factors) != len(inverse):
        raise ConfigError(f"rope scaling of type 'longrope': {name} holds {len(factors)} numbers; it must be "
                          f"{len(inverse)}, one for each pair that is turned")
    amplitude = rope.get("attention_factor")
    if amplitude is None:
        growth = math.log(rope["factor"]) / math.log(original) if rope["factor"] > 1 else 0.0
        amplitude = math.sqrt(1 + growth)
    return inverse / torch.tensor(factors, dtype=torch.float32), float(amplitude)


def _llama3(inverse: torch.Tensor, rope: dict[str, Any]) -> torch.Tensor:
    """Long waves are stretched by `factor`, short ones kept, those between blended by how often they turn."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * inverse / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * inverse + (1 - kept) * inverse / rope["factor"]


def _yarn(inverse: torch.Tensor, rope: dict[str, Any], rotary_dim: int) -> torch.Tensor:
    """As llama3, but blended linearly over the dimensions between those that turn beta_fast and beta_slow times."""
    def dimension(turns: float) -> float:
        wavelength = rope["original_max_position_embeddings"] / (turns * 2 * math.pi)
        return rotary_dim * math.log(wavelength) / (2 * math.log(rope["rope_theta"]))

    first, last = dimension(rope.get("beta_fast") or 32.0), dimension(rope.get("beta_slow") or 1.0)
    if rope.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    span = max(last - first, 0.001)
    stretched = ((torch.arange(rotary_dim // 2, dtype=torch.float32) - first) / span).clamp(0, 1)
    return (1 - stretched) * inverse + stretched * inverse / rope["factor"]


def _yarn_amplitude(rope: dict[str, Any]) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])

    def growth(weight: float) -> float:
        return 0.1 * weight * math.log(rope["factor"]) + 1.0 if rope["factor"] > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return growth(rope["mscale"]) / growth(rope["mscale_all_dim"])
    return growth(1.0)
