"""The MLP block, gated or plain: one product up, activation, one product down. Called by the models."""

from __future__ import annotations

import torch

from quire.engine.errors import ConfigError
from quire.engine.layers.linear import ColumnParallelLinear, RowParallelLinear
from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import View
from quire.engine.weights.scheme import Part
from quire.kernels import ops

# config.json's hidden_act -> the kernel's kind
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh",
                "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh"}
_PLAIN_ACTIVATIONS = {**_ACTIVATIONS, "relu": "relu"}


class GatedMLP:
    """down(act(gate x) * up x). `fused`: gate and up lie one after the other in one tensor of that name."""

    def __init__(self, view: View, hidden_size: int, intermediate_size: int, activation: str, parallel: Parallel, *,
                 bias: bool, fused: str = "") -> None:
        mine = parallel.share(intermediate_size, "intermediate_size")
        parts = [Part("gate_proj", intermediate_size, mine), Part("up_proj", intermediate_size, mine)]
        if fused:
            up = slice(mine.start + intermediate_size, mine.stop + intermediate_size)
            parts = [Part(fused, 2 * intermediate_size, rows) for rows in (mine, up)]
        self._gate_up = ColumnParallelLinear(view, hidden_size, parts, bias=bias,
                                             gate=activation_kind(activation))
        self._down = RowParallelLinear(view.sub("down_proj"), intermediate_size, hidden_size, mine, parallel, bias=bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] -> [tokens, hidden], this rank's part of the sum."""
        return self._down(self._gate_up(x))


class MLP:
    """down(act(up x)); `up` and `down` are the tensors' names, `transposed` as in linear.ColumnParallelLinear."""

    def __init__(self, view: View, hidden_size: int, intermediate_size: int, activation: str, parallel: Parallel, *,
                 up: str, down: str, bias: bool, transposed: bool = False) -> None:
        mine = parallel.share(intermediate_size, "intermediate_size")
        self._up = ColumnParallelLinear(view, hidden_size, [Part(up, intermediate_size, mine)], bias=bias,
                                        transposed=transposed)
        self._kind = activation_kind(activation, _PLAIN_ACTIVATIONS)
        self._down = RowParallelLinear(view.sub(down), intermediate_size, hidden_size, mine, parallel, bias=bias,
                                       transposed=transposed)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] -> [tokens, hidden], this rank's part of the sum."""
        return self._down(ops.activation(self._up(x), self._kind))


def activation_kind(activation: str, kinds: dict[str, str] = _ACTIVATIONS) -> str:
    """The kernel's word for config.json's. Raises ConfigError where it is not among `kinds`."""
    if activation not in kinds:
        raise ConfigError(f"hidden_act {activation!r} is not supported; supported are {', '.join(kinds)}")
    return kinds[activation]
