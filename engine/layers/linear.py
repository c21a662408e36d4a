"""Linear layers, split over ranks by output rows (several checkpoint tensors fused into one product) or input columns.

Refuse to know what their output means. Called by the attention and MLP blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from quire.engine.layers.product import gated_product, product
from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import Rows, View, part_shape


@dataclass(frozen=True, slots=True)
class Part:
    """What of one checkpoint tensor, of num_rows rows in all, goes into a fused layer on this rank."""

    name: str
    num_rows: int
    rows: Rows

    @property
    def size(self) -> int:
        return part_shape((self.num_rows,), self.rows, slice(None))[0]


class ColumnParallelLinear:
    """y = x W^T + b, where this rank computes some of y. `parts` lie one after the other in y.

    With `gate`, an activation's name, y has two parts, and act(first) * second is returned. `transposed`: the
    checkpoint stores [in, out], as GPT-2's Conv1D.
    """

    def __init__(self, view: View, in_features: int, parts: list[Part], *, bias: bool, gate: str = "",
                 transposed: bool = False) -> None:
        out_features = sum(part.size for part in parts)
        weight = view.empty(out_features, in_features)
        biases = view.empty(out_features) if bias else None
        start = 0
        for part in parts:
            place = slice(start, start + part.size)
            view.take(f"{part.name}.weight", (part.num_rows, in_features), rows=part.rows, transposed=transposed,
                      out=weight[place])
            if biases is not None:
                view.take(f"{part.name}.bias", (part.num_rows,), rows=part.rows, out=biases[place])
            start = place.stop
        self._product: Callable[[torch.Tensor], torch.Tensor] = (
            gated_product(weight, biases, gate) if gate else product(weight, biases))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(x)


class RowParallelLinear:
    """y = x W^T + b, where this rank has some of x and gives its part of a sum; the norm that follows adds up."""

    def __init__(self, view: View, in_features: int, out_features: int, columns: slice, parallel: Parallel, *,
                 bias: bool, transposed: bool = False) -> None:
        biases = view.take("bias", (out_features,)) if bias else None
        # Added once, not once a rank.
        mine = biases if parallel.rank == 0 else None
        weight = view.take("weight", (out_features, in_features), columns=columns, transposed=transposed)
        self._product = product(weight, mine)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(x)
