"""A matrix in 4 or 8 bits an element, in the one layout that the kernels read. Every quantised format is put into it
when it is loaded.

w[n, k] = (value(code[n, k]) - zero[g, n]) * scale[g, n] * outer[n], with g = k // group. Refuses to know where weights
come from.
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
WORDS = (64, 32, 16)  # that a run may have
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
    codes: torch.Tensor  # int32 [outputs, whole runs of `words`]
    scales: torch.Tensor  # [groups, outputs] of a float type
    size: int
    words: int  # of a run: word c has elements c, words + c, 2 * words + c and so on, from its lowest bits up
    group: int  # elements of a row that share a scale, from a multiple of it on; the row's last group may be shorter
    zeros: torch.Tensor | None = None  # [groups, outputs], int8 (of int4 and int8) or of a float type; None: all are 0
    outer: torch.Tensor | None = None  # float32 [outputs]; None: all are 1
    order: torch.Tensor | None = None  # int64 [size]: column k is what x[:, order[k]] is multiplied with
    # The type that a product with many rows may round its inputs to, row by row, where that is faster.
    inputs: Literal["int8", "e4m3", None] = None

    def __post_init__(self) -> None:
        assert self.codes.dtype == torch.int32
        assert self.words in WORDS
        assert self.codes.shape == (self.outputs, -(-self.size // self.run) * self.words), (self.codes.shape, self.size)
        assert self.scales.shape == (-(-self.size // self.group), self.outputs), (self.scales.shape, self.group)
        assert self.zeros is None or self.zeros.shape == self.scales.shape
        assert self.outer is None or self.outer.shape == (self.outputs,)

    @property
    def outputs(self) -> int:
        return self.codes.shape[0]

    @property
    def run(self) -> int:
        """Elements of a run."""
        return run_of(self.kind, self.words)

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
        zeros = torch.cat([torch.zeros_like(weight.scales, dtype=torch.int8) if weight.zeros is None else weight.zeros
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


def run_of(kind: Kind, words: int) -> int:
    return words * 32 // BITS[kind]


def packed(kind: Kind, codes: torch.Tensor, scales: torch.Tensor, group: int, zeros: torch.Tensor | None = None,
           outer: torch.Tensor | None = None, order: torch.Tensor | None = None,
           inputs: Literal["int8", "e4m3", None] = None) -> PackedWeight:
    """codes: uint8 [outputs, size], one to a byte; the rest as a PackedWeight has it."""
    size = codes.shape[1]
    words = words_for(kind, size, group)
    return PackedWeight(kind, packed_codes(codes, BITS[kind], words), scales.contiguous(), size, words, group, zeros,
                        outer, order, inputs)


def words_for(kind: Kind, size: int, group: int) -> int:
    """The longest runs that leave nothing to fill up, and whose places each lie in one group."""
    if kind == "nf4":  # its table is looked up in shared memory, where more do not fit
        return WORDS[-1]
    for words in WORDS:
        run = run_of(kind, words)
        is_within = group % run == 0 or (BITS[kind] == 4 and run % group == 0 and group % words == 0)
        if size % run == 0 and (group >= size or is_within):
            return words
    return WORDS[-1]


def packed_codes(codes: torch.Tensor, bits: int, words: int) -> torch.Tensor:
    """uint8 [outputs, size], one to a byte -> int32 [outputs, whole runs]. What fills up the last run is 0."""
    outputs, size = codes.shape
    count = 32 // bits
    filled = torch.nn.functional.pad(codes, (0, -size % (count * words)))
    places = filled.view(outputs, -1, count, words).unbind(2)
    packed = places[0].int()
    for place, part in enumerate(places[1:], 1):
        packed |= part.int() << place * bits
    return packed.flatten(1).contiguous()


def unpacked_codes(weight: PackedWeight) -> torch.Tensor:
    """What `packed_codes` was given: uint8 [outputs, size]."""
    outputs, size = weight.outputs, weight.size
    if BITS[weight.kind] == 8:
        runs = weight.codes.view(torch.uint8).view(outputs, -1, weight.words, 4)
        return runs.transpose(2, 3).reshape(outputs, -1)[:, :size].contiguous()
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=weight.device).unsqueeze(1)
    places = (weight.codes.view(outputs, -1, 1, weight.words) >> shifts) & 15
    return places.to(torch.uint8).view(outputs, -1)[:, :size].contiguous()


@cache
def table(kind: str, device: torch.device) -> torch.Tensor:
    """What each code of a 4-bit kind stands for: float32 [16]."""
    return torch.tensor(TABLES[kind], device=device)
