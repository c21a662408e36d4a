"""Linear layers, split over ranks by output rows (several checkpoint tensors fused into one product) or input columns.

Refuse to know what their output means. Called by the attention and MLP blocks.
"""

from __future__ import annotations

import torch

from quire.engine.layers.load import load_product
from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import ALL, View
from quire.engine.weights.scheme import Part


class ColumnParallelLinear:
    """y = x W^T + b, where this rank computes some of y. `parts` lie one after the other in y.

    With `gate`, an activation's name, y has two parts, and act(first) * second is returned. `transposed`: the
    checkpoint stores [in, out], as GPT-2's Conv1D.
    """

    def __init__(self, view: View, in_features: int, parts: list[Part], *, bias: bool, gate: str = "",
                 transposed: bool = False) -> None:
        biases = None
        if bias:
            biases = view.empty(sum(part.size for part in parts))
            for part, place in zip(parts, biases.split([part.size for part in parts])):
                view.take(f"{part.name}.bias", (part.num_rows,), rows=part.rows, out=place)
        self._product = load_product(view, parts, in_features, biases, gate=gate, transposed=transposed)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(x)


class RowParallelLinear:
    """y = x W^T + b, where this rank has some of x and gives its part of a sum; the norm that follows adds up."""

    def __init__(self, view: View, in_features: int, out_features: int, columns: slice, parallel: Parallel, *,
                 bias: bool, transposed: bool = False) -> None:
        biases = view.take("bias", (out_features,)) if bias else None
        # Added once, not once a rank.
        mine = biases if parallel.rank == 0 else None
        self._product = load_product(view, [Part("", out_features, ALL)], in_features, mine, columns=columns,
                                     transposed=transposed, has_bias=bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(x)
