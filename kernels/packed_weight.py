"""A matrix in 4 or 8 bits an element, in the one layout that the kernels read. All quantised formats are put into it at load.

w[n, k] = (value(code[n, k]) - zero[g, n]) * scale[g, n] * outer[n], with g = k // group. Refuses to know where weights come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch

# int4: the code less 8. e2m1, e4m3: OCP's small floats. nf4: QLoRA's table (Dettmers et al. 2023, appendix E).
Kind = Literal["int4", "e2m1", "nf4", "int8", "e4m3"]
BITS: dict[Kind, int] = {"int4": 4, "e2m1": 4, "nf4": 4, "int8": 8, "e4m3": 8}
RUN = 32  # elements that 16 bytes of 4-bit codes hold: byte i has element i in its low bits, element 16 + i in its high
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
TABLES: dict[str, tuple[float, ...]] = {
    "int4": tuple(float(code - 8) for code in range(16)),
    "e2m1": (*_E2M1, *(-value for value in _E2M1)),
    "nf4": (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
            -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
            0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
}


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """[outputs, size], of `kind`."""

    kind: Kind
    codes: torch.Tensor  # uint8 [outputs, size], or of 4 bits [outputs, size / 2 rounded up to whole runs]
    scales: torch.Tensor  # [groups, outputs] of a float type
    size: int
    group: int  # elements of a row that share a scale, from a multiple of it on; the row's last group may be shorter
    zeros: torch.Tensor | None = None  # [groups, outputs] of a float type; None: all are 0
    outer: torch.Tensor | None = None  # float32 [outputs]; None: all are 1
    order: torch.Tensor | None = None  # int64 [size]: column k is what x[:, order[k]] is multiplied with
    # The type that a product with many rows may round its inputs to, row by row, where that is faster.
    inputs: Literal["int8", "e4m3", None] = None

    def __post_init__(self) -> None:
        assert self.codes.dtype == torch.uint8
        width = -(-self.size // RUN) * RUN // 2 if BITS[self.kind] == 4 else self.size
        assert self.codes.shape == (self.outputs, width), (self.codes.shape, self.size)
        assert self.scales.shape == (-(-self.size // self.group), self.outputs), (self.scales.shape, self.group)
        assert self.zeros is None or self.zeros.shape == self.scales.shape
        assert self.outer is None or self.outer.shape == (self.outputs,)

    @property
    def outputs(self) -> int:
        return self.codes.shape[0]

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def num_bytes(self) -> int:
        held = (self.codes, self.scales, self.zeros, self.outer, self.order)
        return sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)

    def rows(self, rows: slice) -> PackedWeight:
        """Those outputs; views of this one's tensors."""
        return replace(self, codes=self.codes[rows], scales=self.scales[:, rows],
                       zeros=None if self.zeros is None else self.zeros[:, rows],
                       outer=None if self.outer is None else self.outer[rows])


def joined(weights: Sequence[PackedWeight]) -> PackedWeight | None:
    """One behind the other, as one matrix; None where they differ too much for that."""
    first = weights[0]
    if len(weights) == 1:
        return first
    alike = all((other.kind, other.size, other.group, other.inputs, other.scales.dtype) ==
                (first.kind, first.size, first.group, first.inputs, first.scales.dtype) for other in weights)
    if not alike or not _same_order(weights):
        return None
    zeros = outer = None
    if any(weight.zeros is not None for weight in weights):
        zeros = torch.cat([torch.zeros_like(weight.scales) if weight.zeros is None else weight.zeros
                           for weight in weights], 1)
    if any(weight.outer is not None for weight in weights):
        outer = torch.cat([torch.ones(weight.outputs, device=weight.device) if weight.outer is None else weight.outer
                           for weight in weights])
    return replace(first, codes=torch.cat([weight.codes for weight in weights]),
                   scales=torch.cat([weight.scales for weight in weights], 1), zeros=zeros, outer=outer)


def _same_order(weights: Sequence[PackedWeight]) -> bool:
    orders = [weight.order for weight in weights if weight.order is not None]
    if len(orders) < len(weights):
        return not orders
    return all(order.is_meta or torch.equal(order, orders[0]) for order in orders)


def packed_codes(codes: torch.Tensor) -> torch.Tensor:
    """4-bit codes, uint8 [outputs, size], two to a byte; a run that the row does not fill ends in zeros."""
    outputs, size = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -size % RUN))
    low, high = padded.view(outputs, -1, 2, RUN // 2).unbind(2)
    return (low | high << 4).view(outputs, -1)


@cache
def table(kind: str, device: torch.device) -> torch.Tensor:
    """What each code of a 4-bit kind stands for: float32 [16]."""
    return torch.tensor(TABLES[kind], device=device)
