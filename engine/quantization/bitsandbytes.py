"""bitsandbytes: 4-bit NormalFloats (QLoRA), whose scales may be quantised themselves, and LLM.int8()'s 8 bits.

nf4: weight uint8 [out * in / 2, 1], row by row, the even element in the high bits; weight.absmax, a scale for every
`blocksize` elements in that order; weight.quant_state.bitsandbytes__nf4, JSON in bytes. int8: weight int8, and SCB
float32 [out], the largest number of each row.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from quire.engine.errors import WeightError
from quire.engine.quantization.integers import cut_groups, selected
from quire.engine.weights.checkpoint import View
from quire.engine.weights.scheme import Part, WeightScheme, is_kv_scale
from quire.kernels.packed_weight import PackedWeight, packed

_STATE = "weight.quant_state.bitsandbytes__nf4"
_BLOCK = 64  # elements that share a scale, where nothing is said
_LARGEST_INT8 = 127


@dataclass(frozen=True)
class NormalFloats:
    def read(self, view: View, part: Part, in_features: int, columns: slice, *, transposed: bool) -> PackedWeight:
        outputs = part.num_rows
        state = self._state(view)
        block = state.get("blocksize", _BLOCK)
        if in_features % block:
            raise WeightError(f"{view.name}: blocks of {block} elements go over the ends of rows of {in_features}, "
                              "which is not supported")
        pairs = view.take_raw("weight", (outputs * in_features // 2, 1), (torch.uint8,)).view(outputs, -1)
        q = selected(torch.stack((pairs >> 4, pairs & 15), 2).flatten(1), part.rows)[:, columns]
        scales = selected(self._scales(view, outputs * in_features // block, state).view(outputs, -1), part.rows).T
        view.skip("weight.quant_map")
        scales, cut = cut_groups(scales, block, in_features, columns, view.name)
        return packed("nf4", q, scales, cut)

    def _state(self, view: View) -> dict[str, Any]:
        if view.has_any:
            return {}
        raw = view.take_raw(_STATE, view.shape(_STATE) or (0,), (torch.uint8,))
        if raw.is_meta:
            return {}
        try:
            state: dict[str, Any] = json.loads(bytes(raw.cpu().numpy()))
            if state["quant_type"] != "nf4":
                raise ValueError(f"quant_type {state['quant_type']!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise WeightError(f"tensor '{view.name}.{_STATE}' is not a state of nf4: {error!r}") from error
        return state

    def _scales(self, view: View, count: int, state: dict[str, Any]) -> torch.Tensor:
        """float32 [count]."""
        absmax = view.take_raw("weight.absmax", (count,), (torch.float32, torch.uint8))
        if absmax.dtype == torch.float32:
            return absmax
        blocks = state.get("nested_blocksize", 256)
        outer = view.take_raw("weight.nested_absmax", (-(-count // blocks),), (torch.float32,))
        values = view.take_raw("weight.nested_quant_map", (256,), (torch.float32,))
        spread = outer.repeat_interleave(blocks)[:count]
        return values[absmax.long()] * spread + state.get("nested_offset", 0.0)


@dataclass(frozen=True)
class Int8:
    def read(self, view: View, part: Part, in_features: int, columns: slice, *, transposed: bool) -> PackedWeight:
        codes = view.take_raw("weight", (part.num_rows, in_features), (torch.int8,), rows=part.rows, columns=columns)
        largest = view.take_raw("SCB", (part.num_rows,), (torch.float32,), rows=part.rows)
        view.skip("weight_format")
        return packed("int8", codes.view(torch.uint8), (largest / _LARGEST_INT8).unsqueeze(0), codes.shape[1])


class BitsAndBytes:
    def __init__(self, config: dict[str, Any]) -> None:
        self.usual: WeightScheme = NormalFloats() if config.get("load_in_4bit") else Int8()

    def of(self, view: View, *, is_layer: bool) -> WeightScheme | None:
        if view.has("weight.absmax"):
            return NormalFloats()
        return Int8() if view.has("SCB") else None

    def ignores(self, name: str) -> bool:
        return is_kv_scale(name)


def schemes(config: dict[str, Any]) -> BitsAndBytes:
    return BitsAndBytes(config)
