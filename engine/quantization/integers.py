"""Weights of whole numbers, (q - z) * s by groups: AWQ, GPTQ and compressed-tensors each end here.

Called by their readers, which know how each lays out q, z and s.
"""

from __future__ import annotations

from math import gcd

import torch

from quire.engine.errors import ConfigError, WeightError
from quire.engine.weights.checkpoint import ALL, Rows
from quire.kernels.packed_weight import WORDS, PackedWeight, packed

WORD = 32
_FILLED = 32  # columns: where a rank has parts of groups, each is filled up to a multiple of these


def unpacked(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """int32 [n, words] -> uint8 [n, count]: the lowest bits of a row's first word first, on over the words' ends."""
    if WORD % bits == 0:
        shifts = torch.arange(0, WORD, bits, device=words.device, dtype=torch.int32)
        return ((words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).to(torch.uint8).flatten(1)[:, :count]
    first = torch.arange(count, device=words.device) * bits
    wide = torch.nn.functional.pad(words, (0, 1)).long() & 0xFFFFFFFF  # a word more, for the last one's neighbour
    here, behind = wide[:, first // WORD], wide[:, first // WORD + 1]
    return (((here | behind << WORD) >> first % WORD) & ((1 << bits) - 1)).to(torch.uint8)


def selected(matrix: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Those rows, one stretch behind the other."""
    if isinstance(rows, slice):
        return matrix[rows]
    return torch.cat([matrix[stretch] for stretch in rows])


def packed_integers(q: torch.Tensor, zeros: torch.Tensor | None, scales: torch.Tensor, group: int, bits: int,
                    order: torch.Tensor | None = None) -> PackedWeight:
    """q: uint8 [outputs, size]; zeros: of any type, [groups, outputs], None where they are in the middle of the range;
    scales [groups, outputs]. Both numbers are taken less the middle, so that codes of 4 bits are int4's."""
    middle = 1 << (bits - 1)
    if zeros is not None:
        is_float = zeros.is_floating_point()
        zeros = zeros.to(scales.dtype) - middle if is_float else (zeros.short() - middle).to(torch.int8)
    # int4's codes are 8 more than what they stand for, int8's are two's complement
    zeros = None if zeros is None else zeros.contiguous()
    if bits <= 4:
        return packed("int4", q + (8 - middle), scales, group, zeros, order=order)
    return packed("int8", q - middle, scales, group, zeros, order=order)


def group_by_group(q: torch.Tensor, zeros: torch.Tensor | None, scales: torch.Tensor, own: torch.Tensor, bits: int,
                   group: int, name: str) -> PackedWeight:
    """`own`: the group of each column of q. What a rank has of a group may be any number of columns: groups are then
    filled up with columns that are zero."""
    num_groups = scales.shape[0]
    if own.numel() and not 0 <= int(own.min()) <= int(own.max()) < num_groups:
        raise WeightError(f"{name}.g_idx names groups other than the {num_groups} that there are")
    order, counts = own.argsort(stable=True), own.bincount(minlength=num_groups)
    if bool((counts == group).all()):
        return packed_integers(q[:, order], zeros, scales, group, bits, order)
    lengths = (counts + _FILLED - 1) // _FILLED * _FILLED
    of_run = torch.arange(num_groups, device=own.device).repeat_interleave(lengths // _FILLED)
    place = torch.arange(len(order), device=own.device) - (counts.cumsum(0) - counts)[own[order]]
    place += (lengths.cumsum(0) - lengths)[own[order]]
    source = torch.zeros(int(lengths.sum()), dtype=torch.long, device=own.device)
    source[place] = order
    is_real = torch.zeros_like(source, dtype=torch.bool)
    is_real[place] = True
    of_column = of_run.repeat_interleave(_FILLED)
    nothing = torch.full_like(scales, 1 << (bits - 1)) if zeros is None else zeros
    filled = torch.where(is_real, q[:, source], nothing.to(torch.uint8)[of_column].T)
    return packed_integers(filled, None if zeros is None else zeros[of_run], scales[of_run], _FILLED, bits, source)


def cut_groups(per_group: torch.Tensor, group: int, size: int, columns: slice, name: str, least: int = WORDS[-1]
               ) -> tuple[torch.Tensor, int]:
    """Of [groups, outputs] those that `columns` of the `size` inputs lie in, and how many inputs then share one.

    Where the columns begin or end within a group, its numbers are repeated for smaller groups of at least `least`.

    Raises:
        ConfigError: there are no such groups; names the tensor.
    """
    start, stop, _ = columns.indices(size)
    if columns == ALL or per_group.shape[0] == 1:
        return per_group, stop - start if per_group.shape[0] == 1 else group
    smaller = gcd(group, start, stop if stop < size else group)
    if smaller < least:
        raise ConfigError(f"--tensor-parallel-size: {name} is quantised in groups of {group} inputs, and a rank's "
                          f"part, inputs {start} to {stop}, would take pieces of them that do not divide by {least}")
    firsts = torch.arange(start, stop, smaller, device=per_group.device) // group
    return per_group[firsts], smaller


def cut_integers(q: torch.Tensor, zeros: torch.Tensor | None, scales: torch.Tensor, bits: int, group: int, size: int,
                 columns: slice, name: str) -> PackedWeight:
    """As `packed_integers`: q has `columns` of the `size` inputs alone, zeros and scales the groups of all.

    Raises:
        ConfigError: groups cannot be cut so; names the tensor.
    """
    if zeros is not None:
        zeros, _ = cut_groups(zeros, group, size, columns, name)
    scales, cut = cut_groups(scales, group, size, columns, name)
    return packed_integers(q, zeros, scales, cut, bits)


def whole_groups(size: int, group: int, name: str) -> int:
    """The number of groups in a row. Raises WeightError where the last would not be whole."""
    if size % group:
        raise WeightError(f"{name}: rows of {size} inputs are no multiple of the quantisation's groups of {group}")
    return size // group
