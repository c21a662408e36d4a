"""Where in a GGUF file the rows of a tensor lie that Hugging Face knows by another name and order.

Names come from the package gguf's table, orders from what `gguf_forms` says of the architecture. Refuses to know how
numbers are stored. Called by `quire.engine.weights.gguf`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import gguf
import numpy as np

from quire.engine.errors import WeightError
from quire.engine.weights.checkpoint import Shape
from quire.engine.weights.gguf_forms import FORMS, Described, Layout
from quire.engine.weights.gguf_metadata import TensorInfo

_EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<number>\d+)\.(?P<name>\w+)")
_PACKED = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` rows of a tensor, from its row `first` on. A tensor of more dimensions is so many matrices' rows."""

    tensor: TensorInfo
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of `shape`, by Hugging Face's name: row i is row order[i] of the pieces, one after the other."""

    shape: Shape
    pieces: tuple[Piece, ...]
    order: np.ndarray | None = None  # None: as they are
    unit: int = 1  # with an order: so many rows, from a multiple of it on, lie together in the file
    turned: bool = False  # the file has the matrix the other way round
    shift: float = 0.0  # to be added to what the file has


class Layouts:
    def __init__(self, file: Described) -> None:
        arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == file.arch)
        self._names = gguf.get_tensor_name_map(arch, file.need("block_count"))
        self._tensors = file.tensors
        self._layouts: Mapping[str, Layout] = FORMS[file.arch].layouts
        self._num_heads: int = file.need("attention.head_count")
        self._num_kv_heads: int = file.get("attention.head_count_kv") or self._num_heads
        self._head_dim = file.head_dim
        self._found: dict[str, Stored | None] = {}

    def find(self, name: str) -> Stored | None:
        """None where the file has nothing of that name."""
        if name not in self._found:
            self._found[name] = self._find(name)
        return self._found[name]

    def _find(self, name: str) -> Stored | None:
        module, _, kind = name.rpartition(".")
        layout = next((layout for end, layout in self._layouts.items() if module.endswith(end)), None)
        if layout == "packed":
            return self._packed(module.rpartition(".")[0], kind)
        if (expert := _EXPERT.fullmatch(module)) is not None:
            return self._expert(self._piece(f"{expert['experts']}.{expert['name']}", kind), int(expert["number"]))
        piece = self._piece(module, kind)
        if piece is None:
            return None
        shape = (piece.count, *piece.tensor.shape[1:])
        if layout == "pairs":
            heads = self._num_heads if module.endswith("q_proj") else self._num_kv_heads
            dim = piece.count // heads
            if dim % 2 or dim * heads != piece.count:  # it has no such heads, as whoever takes it will say
                return Stored(shape, (piece,))
            return Stored(shape, (piece,), _in_pairs(heads, dim), dim)
        if layout == "stacked":
            order = _stacked(self._num_heads, self._num_kv_heads, self._head_dim)
            if len(order) != piece.count:
                raise WeightError(f"tensor {piece.tensor.name!r} has {piece.count} rows; q of {self._num_heads} heads, "
                                  f"k and v of {self._num_kv_heads}, each {self._head_dim} wide, are {len(order)}")
            return Stored(shape, (piece,), order, self._head_dim)
        if layout == "turned" and len(shape) == 2:
            return Stored(shape[::-1], (piece,), turned=True)
        return Stored(shape, (piece,), shift=-1.0 if layout == "plus_one" else 0.0)

    def _piece(self, module: str, kind: str) -> Piece | None:
        """Of BLOOM, the package's table knows some names only as its first files had them."""
        name = self._names.get_name(module) or self._names.get_name(module.removeprefix("transformer.")) or module
        if (tensor := self._tensors.get(f"{name}.{kind}")) is not None:
            return Piece(tensor, 0, tensor.shape[0])
        return self._fused(*name.rpartition(".")[::2], kind)

    def _fused(self, block: str, name: str, kind: str) -> Piece | None:
        """Some converters' files have q, k and v of any architecture one after the other in a tensor."""
        fused = self._tensors.get(f"{block}.attn_qkv.{kind}")
        q, kv = self._num_heads * self._head_dim, self._num_kv_heads * self._head_dim
        place = {"attn_q": (0, q), "attn_k": (q, kv), "attn_v": (q + kv, kv)}.get(name)
        return None if fused is None or place is None else Piece(fused, *place)

    def _expert(self, stacked: Piece | None, number: int) -> Stored | None:
        if stacked is None or len(stacked.tensor.shape) != 3 or number >= stacked.count:
            return None
        _, rows, columns = stacked.tensor.shape
        return Stored((rows, columns), (Piece(stacked.tensor, number * rows, rows),))

    def _packed(self, block: str, kind: str) -> Stored | None:
        found = [self._piece(f"{block}.{name}", kind) for name in _PACKED]
        pieces = tuple(piece for piece in found if piece is not None)
        if len(pieces) < len(_PACKED):
            return None
        dim = pieces[0].count // self._num_heads
        q, k = _in_pairs(self._num_heads, dim), _in_pairs(self._num_kv_heads, dim)
        order = np.concatenate((q, len(q) + k, len(q) + len(k) + np.arange(len(k))))
        return Stored((len(order), *pieces[0].tensor.shape[1:]), pieces, order, dim)


@lru_cache(16)  # layers are alike
def _in_pairs(heads: int, dim: int) -> np.ndarray:
    """(head, half, pair) here, (head, pair, half) in the file."""
    return np.arange(heads * dim).reshape(heads, dim // 2, 2).swapaxes(1, 2).reshape(-1)


@lru_cache(16)
def _stacked(num_heads: int, num_kv_heads: int, dim: int) -> np.ndarray:
    """KV head by KV head here: q of the query heads that share it, its k, its v."""
    kv = np.arange(num_kv_heads).reshape(-1, 1)
    q = np.arange(num_heads).reshape(num_kv_heads, -1)
    heads = np.concatenate((q, num_heads + kv, num_heads + num_kv_heads + kv), 1).reshape(-1, 1)
    return (heads * dim + np.arange(dim)).reshape(-1)
