"""GPTQ: weights of 2, 3, 4 or 8 bits by groups (Frantar et al. 2022), as AutoGPTQ and GPTQModel lay them out.

qweight int32 [in * bits / 32, out], the inputs of an output one behind the other; qzeros int32 [groups,
out * bits / 32]; scales [groups, out]; g_idx int32 [in], the group of each input. With act order inputs were quantised
by falling importance, so that groups are scattered; a weight then keeps them group by group, and says in which order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from quire.engine.quantization.integers import (
    WORD,
    cut_integers,
    group_by_group,
    selected,
    unpacked,
    whole_groups,
)
from quire.engine.quantization_config import group_size
from quire.engine.weights.checkpoint import View
from quire.engine.weights.scheme import Part, WeightScheme, is_kv_scale
from quire.kernels.packed_weight import PackedWeight

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class GptqScheme:
    bits: int
    group: int
    is_symmetric: bool
    act_order: bool
    stored_less_one: bool  # zero points, as all but gptq_v2 have them

    def read(self, view: View, part: Part, in_features: int, columns: slice, *, transposed: bool) -> PackedWeight:
        group, bits, outputs = in_features if self.group == -1 else self.group, self.bits, part.num_rows
        groups = whole_groups(in_features, group, view.name)
        words = view.take_raw("qweight", (in_features * bits // WORD, outputs), (torch.int32,))
        q = selected(unpacked(words.T, bits, in_features), part.rows)[:, columns]
        scales = selected(view.take_raw("scales", (groups, outputs), _FLOATS).T, part.rows).T
        stored = view.take_raw("qzeros", (groups, outputs * bits // WORD), (torch.int32,))
        zeros = None
        if not self.is_symmetric:  # of symmetric weights some writers stored other numbers than they used
            zeros = unpacked(stored, bits, outputs)
            zeros = (zeros + 1 & (1 << bits) - 1) if self.stored_less_one else zeros
            zeros = selected(zeros.T, part.rows).T
        if self.act_order and view.device.type != "meta":
            own = view.take_raw("g_idx", (in_features,), (torch.int32,)).long()
            if not torch.equal(own, torch.arange(in_features, device=own.device) // group):
                return group_by_group(q, zeros, scales, own[columns], bits, group, view.name)
        view.skip("g_idx")
        return cut_integers(q, zeros, scales, bits, group, in_features, columns, view.name)


@dataclass(frozen=True)
class GptqSchemes:
    usual: GptqScheme
    # Patterns of module names, and what is different there
    exceptions: tuple[tuple[re.Pattern[str], Mapping[str, Any]], ...]

    def of(self, view: View, *, is_layer: bool) -> WeightScheme | None:
        if not view.has("qweight"):
            return None
        for pattern, changes in self.exceptions:
            if pattern.match(view.name):
                return replace(self.usual, **changes)
        return self.usual

    def ignores(self, name: str) -> bool:
        return is_kv_scale(name)


def schemes(config: dict[str, Any]) -> GptqSchemes:
    usual = GptqScheme(config["bits"], group_size(config), bool(config.get("sym", True)),
                       bool(config.get("desc_act", False)),
                       (config.get("checkpoint_format") or config.get("format") or "gptq") == "gptq")
    names = {"bits": "bits", "group_size": "group", "sym": "is_symmetric", "desc_act": "act_order"}
    # "-:PATTERN" leaves modules alone, which shows in their tensors.
    exceptions = tuple((re.compile(pattern.removeprefix("+:")),
                        {names[name]: value for name, value in changes.items() if name in names})
                       for pattern, changes in (config.get("dynamic") or {}).items() if not pattern.startswith("-:"))
    return GptqSchemes(usual, exceptions)
