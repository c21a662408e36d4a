"""Checkpoints in GGUF files, every quantised type, turned back into floats as layers pull them.

Speaks Hugging Face's names and layouts to the outside; where a tensor lies in the files, `gguf_layout` says. Called by
`quire.engine.weights.load`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import torch

from quire.engine.errors import WeightError
from quire.engine.weights.checkpoint import Checkpoint, RowReader, Rows, Shape
from quire.engine.weights.gguf_forms import Described
from quire.engine.weights.gguf_layout import Layouts, Piece, Stored
from quire.engine.weights.gguf_metadata import TensorInfo
from quire.engine.weights.gguf_parts import read_model
from quire.engine.weights.mapped_file import MappedFile

_CHUNK_ELEMENTS = 1 << 18  # floats decoded at once: they and numpy's temporaries stay in the cache
_MAX_THREADS = 8
# longrope's factors, which `gguf_forms` reads
_OF_THE_CONFIGURATION = {"rope_factors_long.weight", "rope_factors_short.weight"}


class GgufCheckpoint(Checkpoint):
    def __init__(self, path: Path) -> None:
        model = read_model(path)
        self._tensors = model.header.tensors
        self._layouts = Layouts(Described(model.header.metadata["general.architecture"], model))
        self._files = [MappedFile(file) for file in model.files]
        self._threads = ThreadPoolExecutor(min(_MAX_THREADS, len(os.sched_getaffinity(0))))
        self.num_elements = sum(math.prod(tensor.shape) for tensor in self._tensors.values())

    def shape(self, name: str) -> Shape | None:
        stored = self._layouts.find(name)
        return None if stored is None else stored.shape

    def read(self, name: str, out: torch.Tensor, rows: slice, columns: slice) -> None:
        stored = self._layouts.find(name)
        assert stored is not None, name
        if len(stored.shape) == 1:
            # Stored as one row, whose blocks may span heads: decoded whole.
            values = torch.cat([self._vector(piece) for piece in stored.pieces]) + stored.shift
            out.copy_(values[rows] if stored.order is None else values[torch.from_numpy(stored.order[rows])])
        elif stored.turned:
            turned = torch.empty(out.shape[::-1])
            self._read_rows(stored, turned, columns, rows)
            out.copy_(turned.T)
        else:
            self._read_rows(stored, out, rows, columns)

    def _read_rows(self, stored: Stored, out: torch.Tensor, rows: slice, columns: slice) -> None:
        first, last, _ = rows.indices(sum(piece.count for piece in stored.pieces))
        row_length = stored.pieces[0].tensor.shape[-1]
        step = max(1, _CHUNK_ELEMENTS // row_length) if stored.order is None else stored.unit
        assert stored.order is None or first % step == last % step == 0, "a shard of q, k or v is whole heads"

        def decode(start: int) -> None:
            stop = min(start + step, last)
            place = out[start - first:stop - first]
            if stored.order is None:
                with self._decoded(stored, start, stop) as part:
                    place.copy_(part[:, columns])
                return
            wanted = torch.from_numpy(stored.order[start:stop])
            begin = int(wanted.min())
            with self._decoded(stored, begin, begin + stop - start) as part:
                place.copy_(part[wanted - begin, columns])

        list(self._threads.map(decode, range(first, last, step)))

    @contextmanager
    def _decoded(self, stored: Stored, first: int, last: int) -> Iterator[torch.Tensor]:
        """Rows of the pieces together, all of one piece. They may be the file's own bytes: for within the `with`."""
        for piece in stored.pieces:
            if first < piece.count:
                break
            first, last = first - piece.count, last - piece.count
        kind, _, row_bytes = _layout(piece.tensor)
        begin = piece.tensor.offset + (piece.first + first) * row_bytes
        with self._file(piece.tensor).span(begin, begin + (last - first) * row_bytes, piece.tensor.name) as data:
            yield torch.from_numpy(_floats(data.reshape(last - first, row_bytes), kind))

    def block_type(self, name: str) -> str | None:
        stored = self._layouts.find(name)
        if stored is None or stored.turned or stored.shift or len(stored.shape) != 2:
            return None
        kinds = {piece.tensor.type_id for piece in stored.pieces}
        return _layout(stored.pieces[0].tensor)[0].name if len(kinds) == 1 else None

    def read_blocks(self, name: str, rows: Rows) -> torch.Tensor:
        stored = self._layouts.find(name)
        assert stored is not None, name
        kind, _, row_bytes = _layout(stored.pieces[0].tensor)
        whole = np.empty((stored.shape[0], row_bytes), np.uint8)
        start = 0
        for piece in stored.pieces:
            begin, part = piece.tensor.offset + piece.first * row_bytes, whole[start:start + piece.count]
            with self._file(piece.tensor).span(begin, begin + part.nbytes, piece.tensor.name) as data:
                part.reshape(-1)[:] = data
            start += piece.count
        numbers = np.arange(len(whole)) if stored.order is None else stored.order
        wanted = np.concatenate([numbers[stretch] for stretch in (rows if isinstance(rows, tuple) else (rows,))])
        return torch.from_numpy(whole[wanted].reshape(len(wanted), -1, gguf.GGML_QUANT_SIZES[kind][1]))

    def _vector(self, piece: Piece) -> torch.Tensor:
        tensor = piece.tensor
        kind, _, num_bytes = _layout(tensor)
        with self._file(tensor).span(tensor.offset, tensor.offset + num_bytes, tensor.name) as data:
            values = torch.from_numpy(_floats(data.reshape(1, num_bytes), kind)).view(-1)
            return values[piece.first:piece.first + piece.count].clone()

    def rows_on_demand(self, name: str) -> RowReader | None:
        found = self._layouts.find(name)
        assert found is not None, name
        tensor = found.pieces[0].tensor
        assert found.order is None and not found.turned, "an embedding is stored as it is"
        kind, _, row_bytes = _layout(tensor)
        num_rows = tensor.shape[0]
        stored = np.empty((num_rows, row_bytes), np.uint8)
        step = max(1, _CHUNK_ELEMENTS // row_bytes)
        for start in range(0, num_rows, step):
            begin, part = tensor.offset + start * row_bytes, stored[start:start + step]
            with self._file(tensor).span(begin, begin + part.nbytes, tensor.name) as data:
                part.reshape(-1)[:] = data

        def read(rows: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(_floats(stored[rows.numpy()], kind))

        return read

    def unread(self, taken: set[str]) -> Iterable[str]:
        found = [self._layouts.find(name) for name in taken]
        read = {piece.tensor.name for stored in found if stored is not None for piece in stored.pieces}
        return self._tensors.keys() - read - _OF_THE_CONFIGURATION

    def close(self) -> None:
        self._threads.shutdown()
        for file in self._files:
            file.close()

    def _file(self, tensor: TensorInfo) -> MappedFile:
        return self._files[tensor.part]


def _layout(tensor: TensorInfo) -> tuple[gguf.GGMLQuantizationType, int, int]:
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


def _floats(data: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    try:
        return np.ascontiguousarray(gguf.dequantize(data, kind), np.float32)
    except NotImplementedError as error:
        raise WeightError(f"GGML type {kind.name} cannot be read by this version of the package gguf") from error
