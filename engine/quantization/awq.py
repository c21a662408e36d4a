"""AWQ: 4-bit weights with zero points by groups (Lin et al. 2023), as AutoAWQ lays them out for its "gemm".

qweight int32 [in, out / 8], qzeros int32 [groups, out / 8], scales float16 [groups, out]; a word holds eight
neighbouring outputs, in the order of _PLACES.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quire.engine.quantization.integers import cut_integers, selected, whole_groups
from quire.engine.quantization_config import group_size
from quire.engine.weights.checkpoint import View
from quire.engine.weights.scheme import Part, WeightScheme, is_kv_scale
from quire.kernels.packed_weight import PackedWeight

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of each output in its word, in nibbles from the lowest
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Awq:
    """The scheme of all modules that have a qweight."""

    group: int

    @property
    def usual(self) -> WeightScheme:
        return self

    def of(self, view: View, *, is_layer: bool) -> WeightScheme | None:
        return self if view.has("qweight") else None

    def ignores(self, name: str) -> bool:
        return is_kv_scale(name)

    def read(self, view: View, part: Part, in_features: int, columns: slice, *, transposed: bool) -> PackedWeight:
        group = in_features if self.group == -1 else self.group
        groups = whole_groups(in_features, group, view.name)
        words = part.num_rows // 8
        q = view.take_raw("qweight", (in_features, words), (torch.int32,), rows=columns)
        zeros = view.take_raw("qzeros", (groups, words), (torch.int32,))
        scales = view.take_raw("scales", (groups, part.num_rows), _FLOATS)
        return cut_integers(selected(_outputs(q).T, part.rows), selected(_outputs(zeros).T, part.rows).T,
                            selected(scales.T, part.rows).T, 4, group, in_features, columns, view.name)


def _outputs(words: torch.Tensor) -> torch.Tensor:
    """int32 [n, words] -> uint8 [n, 8 * words]."""
    shifts = torch.tensor([4 * place for place in _PLACES], dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(-1) >> shifts) & 15).to(torch.uint8).flatten(1)


def schemes(config: dict[str, Any]) -> Awq:
    return Awq(group_size(config, "group_size", "q_group_size"))
