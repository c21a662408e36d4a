"""How long a GPU takes for a step, from what it must read and multiply.

A step's products take as long as reading the weights or as multiplying, whichever is longer; its attention reads the K
and V of every row and, of prompts, multiplies; and something is lost at every step. Shares of the data sheet's figures
that are reached, and the loss, are parameters: measured ones make the forecast better (docs/capacity.md).
Refuses to know when a step begins (`replay`) and what is in it (the scheduler).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from quire.engine.model_config import ModelConfig
from quire.engine.plan import StepPlan
from quire.engine.weights.size import ITEM_BYTES
from quire.loadtest.simulate.gpus import Gpu


@dataclass(frozen=True, slots=True)
class Reached:
    """By our kernels on an H200 (docs/performance.md): 4.3 of 4.8 TB/s, and 590 of 989 TFLOP/s for long."""

    bandwidth: float = 0.9
    products: float = 0.6
    lost_s: float = 2e-4  # at each step, beside what it reads and multiplies


TYPICAL = Reached()


@dataclass(frozen=True, slots=True)
class Experts:
    """Of a mixture: a token is multiplied by some of them, and a step reads those that any of its tokens takes."""

    share: float  # of the weights that are experts'
    used: float  # share of the experts that a token takes

    @classmethod
    def of(cls, model: ModelConfig, num_weights: float) -> Experts:
        count = int(model.hf.get("num_experts") or model.hf.get("num_local_experts") or 0)
        if not count:
            return cls(0.0, 1.0)
        inner = int(model.hf.get("moe_intermediate_size") or model.hf["intermediate_size"])
        of_experts = model.num_layers * count * 3 * model.hidden_size * inner
        return cls(min(1.0, of_experts / num_weights), int(model.hf.get("num_experts_per_tok") or 1) / count)

    def read(self, num_tokens: int) -> float:
        """Share of all weights that a step of so many tokens reads, if each takes its experts by chance."""
        return 1.0 - self.share * (1.0 - self.used) ** num_tokens

    @property
    def multiplied(self) -> float:
        """Share of all weights that a token is multiplied by."""
        return 1.0 - self.share * (1.0 - self.used)


class CostModel:
    def __init__(self, model: ModelConfig, dtype: str, gpu: Gpu, num_weight_bytes: float,
                 reached: Reached = TYPICAL, kv_type: str = "") -> None:
        """`kv_type`: of the KV cache; `dtype` unless it is said."""
        item = ITEM_BYTES[dtype]
        self._bytes_per_s = gpu.bytes_per_s * reached.bandwidth
        self._flop_per_s = gpu.flop_per_s * reached.products
        self._lost_s = reached.lost_s
        self._weight_bytes = num_weight_bytes
        self._experts = Experts.of(model, num_weight_bytes / item)
        self._flop_a_token = 2 * self._experts.multiplied * num_weight_bytes / item
        # of a token in a layer
        self._kv_bytes = 2 * model.num_kv_heads * model.head_dim * ITEM_BYTES[kv_type or dtype]
        self._flop_a_pair = 4 * model.num_heads * model.head_dim  # of a token and one that it sees, in a layer
        self._layers = Counter(model.windows or [None] * model.num_layers)  # by window

    def seconds(self, plan: StepPlan) -> float:
        num_tokens = sum(plan.num_tokens)
        products_s = max(self._experts.read(num_tokens) * self._weight_bytes / self._bytes_per_s,
                         self._flop_a_token * num_tokens / self._flop_per_s)
        read, pairs = 0, 0.0
        for window, num_layers in self._layers.items():
            read += num_layers * _tokens_read(plan, window)
            pairs += num_layers * _pairs(plan, window)
        return (self._lost_s + products_s + read * self._kv_bytes / self._bytes_per_s
                + pairs * self._flop_a_pair / self._flop_per_s)


def _tokens_read(plan: StepPlan, window: int | None) -> int:
    """Tokens whose K and V a layer reads, for all rows."""
    if window is None:
        saved = max(0, len(plan.shared_places) - 1) * plan.num_shared_tokens
        return sum(plan.starts) + sum(plan.num_tokens) - saved
    return sum(min(start + count, window + count - 1) for start, count in zip(plan.starts, plan.num_tokens))


def _pairs(plan: StepPlan, window: int | None) -> float:
    """Pairs of a prompt's token and one that it sees. What decodes multiply is little beside what they read."""
    first = plan.num_decodes
    pairs = 0.0
    for start, count in zip(plan.starts[first:], plan.num_tokens[first:]):
        seen = start + count / 2  # by a token in the middle
        pairs += count * (seen if window is None else min(seen, window))
    return pairs
