"""A mixture of experts: a router, and gated MLPs of which each token goes through some. Called by the models.

Each rank has a part of every expert, so what it returns is its part of a sum, as an MLP's. Experts are computed in
floats, also where the checkpoint has them packed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.engine.errors import ConfigError
from quire.engine.layers.load import load_weight
from quire.engine.layers.mlp import activation_kind
from quire.engine.layers.product import product
from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import ALL, View
from quire.engine.weights.scheme import Part
from quire.kernels import ops


@dataclass(frozen=True, slots=True)
class Routing:
    num_experts: int
    num_chosen: int
    scoring: str = "softmax"  # or "sigmoid"
    renormalize: bool = True  # the chosen experts' weights are made to add up to 1

    def __post_init__(self) -> None:
        if self.num_chosen > self.num_experts:
            raise ConfigError(f"num_experts_per_tok {self.num_chosen} is more than the {self.num_experts} experts that "
                              "there are")


class Experts:
    """`names`: an expert's gate, up and down in the checkpoint; newer files have those of all experts in one tensor."""

    def __init__(self, view: View, hidden_size: int, inner_size: int, activation: str, routing: Routing,
                 parallel: Parallel, *, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> None:
        self._router = product(load_weight(view, [Part("gate", routing.num_experts, ALL)], hidden_size))
        self._routing = routing
        self._kind = activation_kind(activation)
        mine = parallel.share(inner_size, "the width of an expert")
        size = mine.stop - mine.start
        self._gate_up = view.empty(routing.num_experts, 2 * size, hidden_size)
        self._down = view.empty(routing.num_experts, hidden_size, size)
        if view.has("experts.gate_up_proj"):
            self._take_merged(view, inner_size, mine)
        else:
            self._take_each(view, inner_size, mine, names)

    def _take_each(self, view: View, inner: int, mine: slice, names: tuple[str, str, str]) -> None:
        hidden = self._down.shape[1]
        for expert in range(self._routing.num_experts):
            one = view.sub(f"experts.{expert}")
            for name, out in zip(names, self._gate_up[expert].chunk(2)):
                load_weight(one, [Part(name, inner, mine)], hidden, out=out)
            load_weight(one, [Part(names[2], hidden, ALL)], inner, columns=mine, out=self._down[expert])

    def _take_merged(self, view: View, inner: int, mine: slice) -> None:
        hidden, count = self._down.shape[1], self._routing.num_experts
        for expert in range(count):
            one = slice(expert, expert + 1)
            gate_up = view.take("experts.gate_up_proj", (count, 2 * inner, hidden), rows=one)[0]
            for part, out in zip(gate_up.chunk(2), self._gate_up[expert].chunk(2)):
                out.copy_(part[mine])
            self._down[expert].copy_(view.take("experts.down_proj", (count, hidden, inner), rows=one)[0][:, mine])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] -> [tokens, hidden], this rank's part of the sum."""
        routing = self._routing
        ids, weights = ops.route(self._router(x), routing.num_chosen, scoring=routing.scoring,
                                 renormalize=routing.renormalize)
        return ops.gated_experts(x, self._gate_up, self._down, ids, weights, self._kind)
