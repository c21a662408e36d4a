"""What a layer needs to know of a weight that is no tensor of floats: that a scheme reads it.

Implemented by the files of `quire.engine.quantization`. Called by the view, which layers ask for the scheme of each
weight.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from quire.engine.weights.checkpoint import Rows, View, part_shape
from quire.kernels.packed_weight import PackedWeight


@dataclass(frozen=True, slots=True)
class Part:
    """What of one checkpoint tensor, of num_rows rows in all, goes into a fused layer on this rank."""

    name: str  # of the module; "": the view's own
    num_rows: int
    rows: Rows

    @property
    def size(self) -> int:
        return part_shape((self.num_rows,), self.rows, slice(None))[0]


class WeightScheme(Protocol):
    def read(self, view: View, part: Part, in_features: int, columns: slice, *, transposed: bool) -> PackedWeight:
        """The part's weight, of whose in_features `columns` are this rank's. `view` is that of the part's module.

        Raises:
            WeightError: tensors are missing or have other shapes or types than the configuration says.
            ConfigError: what this rank has of it cannot be cut off.
        """


class Schemes(Protocol):
    """Of one checkpoint."""

    @property
    def usual(self) -> WeightScheme:
        """That of a layer, as the configuration has it, where weights are random and no tensor tells."""

    def of(self, view: View, *, is_layer: bool) -> WeightScheme | None:
        """As View.scheme, of the module that this is the view of."""

    def ignores(self, name: str) -> bool:
        """Whether the tensor may be left unread."""


_OF_THE_KV_CACHE = re.compile(r"\.([qkv]_scale|kv_scale|[kv]_proj\.output_scale|[kv]_cache\.scale)$")


def is_kv_scale(name: str) -> bool:
    """Whether the tensor is a scale of a KV cache in 8 bits, which checkpoints have beside their weights'."""
    return _OF_THE_KV_CACHE.search(name) is not None
