"""The gated MLP block: one product for gate and up, activation, one product down. Called by the models."""

from __future__ import annotations

import torch

from quire.engine.errors import ConfigError
from quire.engine.layers.linear import ColumnParallelLinear, Part, RowParallelLinear
from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import View

# config.json's hidden_act -> the kernel's kind
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


class GatedMLP:
    def __init__(self, view: View, hidden_size: int, intermediate_size: int, activation: str, parallel: Parallel, *,
                 bias: bool) -> None:
        if activation not in _ACTIVATIONS:
            raise ConfigError(f"hidden_act {activation!r} is not supported; supported are {', '.join(_ACTIVATIONS)}")
        mine = parallel.share(intermediate_size, "intermediate_size")
        self._gate_up = ColumnParallelLinear(view, hidden_size, [
            Part("gate_proj", intermediate_size, mine),
            Part("up_proj", intermediate_size, mine),
        ], bias=bias, gate=_ACTIVATIONS[activation])
        self._down = RowParallelLinear(view.sub("down_proj"), intermediate_size, hidden_size, mine, parallel, bias=bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] -> [tokens, hidden], this rank's part of the sum."""
        return self._down(self._gate_up(x))
