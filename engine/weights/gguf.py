"""Checkpoints in GGUF files, every quantised type, turned back into floats as layers pull them.

Speaks Hugging Face's names and layouts to the outside; llama.cpp's inside. Called by `quire.engine.weights.load`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import torch

from quire.engine.errors import WeightError
from quire.engine.weights.checkpoint import Checkpoint, RowReader, Shape
from quire.engine.weights.gguf_metadata import TensorInfo, read_header
from quire.engine.weights.mapped_file import MappedFile

_CHUNK_ELEMENTS = 1 << 18  # floats decoded at once: they and numpy's temporaries stay in the cache
_MAX_THREADS = 8


class GgufCheckpoint(Checkpoint):
    def __init__(self, path: Path) -> None:
        header = read_header(path)
        metadata = header.metadata
        self._arch: str = metadata["general.architecture"]
        self._num_heads: int = metadata[f"{self._arch}.attention.head_count"]
        self._num_kv_heads: int = metadata.get(f"{self._arch}.attention.head_count_kv", self._num_heads)
        self._tensors = header.tensors
        self._names = gguf.get_tensor_name_map(_arch_id(self._arch), metadata[f"{self._arch}.block_count"])
        self._file = MappedFile(path)
        self._threads = ThreadPoolExecutor(min(_MAX_THREADS, len(os.sched_getaffinity(0))))
        self.num_elements = sum(math.prod(tensor.shape) for tensor in self._tensors.values())

    def shape(self, name: str) -> Shape | None:
        tensor = self._tensors.get(self._name(name))
        return None if tensor is None else tensor.shape

    def read(self, name: str, out: torch.Tensor, rows: slice, columns: slice) -> None:
        tensor = self._tensors[self._name(name)]
        kind, row_length, row_bytes = self._layout(tensor)
        heads = self._permuted_heads(name)
        unit = tensor.shape[0] // heads if heads else 1
        if len(tensor.shape) == 1:
            # Stored as one row, whose blocks may span heads: decoded whole, it is so many rows of one element.
            with self._file.span(tensor.offset, tensor.offset + row_bytes, tensor.name) as data:
                values = torch.from_numpy(_floats(data.reshape(1, row_bytes), kind)).view(-1, 1)
                out.copy_(_in_order(values, unit).view(-1)[rows])
            return
        first, last, _ = rows.indices(math.prod(tensor.shape) // row_length)
        assert first % unit == last % unit == 0, "a shard of q or k is whole heads"
        step = max(1, _CHUNK_ELEMENTS // (row_length * unit)) * unit

        def decode(start: int) -> None:
            stop = min(start + step, last)
            begin = tensor.offset + start * row_bytes
            with self._file.span(begin, begin + (stop - start) * row_bytes, tensor.name) as data:
                values = torch.from_numpy(_floats(data.reshape(stop - start, row_bytes), kind))
                out[start - first:stop - first].copy_(_in_order(values, unit)[:, columns])

        list(self._threads.map(decode, range(first, last, step)))

    def rows_on_demand(self, name: str) -> RowReader | None:
        tensor = self._tensors[self._name(name)]
        kind, _, row_bytes = self._layout(tensor)
        assert len(tensor.shape) == 2, tensor
        assert not self._permuted_heads(name), tensor
        num_rows = tensor.shape[0]
        stored = np.empty((num_rows, row_bytes), np.uint8)
        step = max(1, _CHUNK_ELEMENTS // row_bytes)
        for start in range(0, num_rows, step):
            begin, part = tensor.offset + start * row_bytes, stored[start:start + step]
            with self._file.span(begin, begin + part.nbytes, tensor.name) as data:
                part.reshape(-1)[:] = data

        def read(rows: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(_floats(stored[rows.numpy()], kind))

        return read

    def unread(self, taken: set[str]) -> Iterable[str]:
        return self._tensors.keys() - {self._name(name) for name in taken}

    def close(self) -> None:
        self._threads.shutdown()
        self._file.close()

    def _name(self, name: str) -> str:
        found = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        return str(found) if found is not None else name

    def _layout(self, tensor: TensorInfo) -> tuple[gguf.GGMLQuantizationType, int, int]:
        """Its type, and the elements and bytes of a row."""
        try:
            kind = gguf.GGMLQuantizationType(tensor.type_id)
        except ValueError as error:
            raise WeightError(f"tensor {tensor.name!r} has the unknown GGML type {tensor.type_id}") from error
        block_elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        row_length = tensor.shape[-1]
        if row_length % block_elements:
            raise WeightError(f"tensor {tensor.name!r} of type {kind.name} has rows of {row_length} elements, which is "
                              f"not a multiple of {block_elements}")
        return kind, row_length, row_length // block_elements * block_bytes

    def _permuted_heads(self, name: str) -> int:
        """Heads of a permuted tensor, 0 for others: llama files interleave the halves of each head of q and k."""
        if self._arch != "llama":
            return 0
        if ".self_attn.q_proj." in name:
            return self._num_heads
        return self._num_kv_heads if ".self_attn.k_proj." in name else 0


def _arch_id(name: str) -> gguf.MODEL_ARCH:
    return next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)


def _in_order(rows: torch.Tensor, unit: int) -> torch.Tensor:
    """Heads of `unit` rows put right: (head, half, pair) here, (head, pair, half) in the file. 1: nothing to do."""
    if unit == 1:
        return rows
    return rows.view(-1, unit // 2, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def _floats(data: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    try:
        return np.ascontiguousarray(gguf.dequantize(data, kind), np.float32)
    except NotImplementedError as error:
        raise WeightError(f"GGML type {kind.name} cannot be read by this version of the package gguf") from error
