"""How long a GPU takes for a step, from what it must read and multiply.

The sum of: its products, whose reading of the weights and multiplying overlap in part; what lies between products
(norms, activations), which reads and writes each token; attention, which reads the K and V of every row and, of
prompts, multiplies; and something lost in each layer. It takes no less than the host does meanwhile. Shares of the data
sheet's figures that are reached, and what is lost, are parameters: measured ones make the forecast better
(docs/capacity.md).
Refuses to know when a step begins (`replay`) and what is in it (the scheduler).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import hypot

from quire.engine.model_config import ModelConfig
from quire.engine.plan import StepPlan
from quire.engine.weights.size import ITEM_BYTES
from quire.loadtest.simulate.crowd import NO_DECODES, Decodes
from quire.loadtest.simulate.gpus import Gpu

# Of prompts, in the share of products that is reached: two short products with a softmax between them.
_ATTENTION = 0.6


@dataclass(frozen=True, slots=True)
class Reached:
    """By our kernels on an H200 (docs/performance.md): 4.3 of 4.8 TB/s, 670 of 989 TFLOP/s sustained."""

    bandwidth: float = 0.9
    products: float = 0.68
    lost_s: float = 2e-5  # in each layer of each step, between its kernels and in filling them
    # Of the host's work, which goes on beside the device's: a step takes no less.
    host_s: float = 3e-4
    host_row_s: float = 6e-6


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
    def __init__(self, model: ModelConfig, dtype: str, gpu: Gpu, num_weight_bytes: float, num_weights: float,
                 reached: Reached = TYPICAL, kv_type: str = "") -> None:
        """`kv_type`: of the KV cache; `dtype` unless it is said."""
        item = ITEM_BYTES[dtype]
        self._bytes_per_s = gpu.bytes_per_s * reached.bandwidth
        self._flop_per_s = gpu.flop_per_s * reached.products
        self._num_layers = model.num_layers
        self._reached = reached
        # An embedding is looked up in, not multiplied by: only as the head, where there is but one table.
        head = model.vocab_size * model.hidden_size
        layers = num_weights - head * (1 if model.hf.get("tie_word_embeddings") else 2)
        self._experts = Experts.of(model, layers)
        self._layer_bytes = layers * num_weight_bytes / num_weights
        self._head_bytes = head * num_weight_bytes / num_weights
        self._layers_flop = 2 * self._experts.multiplied * layers  # of a token
        self._head_flop = 2 * head
        inner = int(model.hf.get("intermediate_size") or 4 * model.hidden_size)
        self._between_bytes = model.num_layers * item * (8 * model.hidden_size + 4 * inner)  # of a token
        self._kv_bytes = 2 * model.num_kv_heads * model.head_dim * ITEM_BYTES[kv_type or dtype]  # of a token in a layer
        self._flop_a_pair = 4 * model.num_heads * model.head_dim  # of a token and one that it sees, in a layer
        self._layers = Counter(model.windows or [None] * model.num_layers)  # by window

    def seconds(self, plan: StepPlan, decodes: Decodes = NO_DECODES) -> float:
        num_tokens = sum(plan.num_tokens) + decodes.num_tokens
        read, pairs = 0, 0.0
        for window, num_layers in self._layers.items():
            read += num_layers * (_tokens_read(plan, window) + decodes.read.get(window, 0))
            pairs += num_layers * _pairs(plan, window)
        num_bytes = read * self._kv_bytes + num_tokens * self._between_bytes
        num_rows = len(plan.rows) + decodes.num_tokens
        device_s = (self._reached.lost_s * self._num_layers + self._products_s(num_tokens, num_rows)
                    + num_bytes / self._bytes_per_s + pairs * self._flop_a_pair / (_ATTENTION * self._flop_per_s))
        return max(device_s, self._reached.host_s + self._reached.host_row_s * num_rows)

    def _products_s(self, num_tokens: int, num_rows: int) -> float:
        """The head, and most of the last layer, are wanted of each row's last token alone."""
        layers_flop = self._layers_flop * (num_tokens - (num_tokens - num_rows) / self._num_layers)
        flop = layers_flop + self._head_flop * num_rows
        num_bytes = self._experts.read(num_tokens) * self._layer_bytes + self._head_bytes
        return hypot(num_bytes / self._bytes_per_s, flop / self._flop_per_s)


def _tokens_read(plan: StepPlan, window: int | None) -> int:
    """Tokens whose K and V a layer reads, for all rows."""
    if not plan.rows:
        return 0
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
