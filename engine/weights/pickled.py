"""Checkpoints as torch.save wrote them before safetensors: pytorch_model.bin, whole or with an index.

A pickle is a program. This reader runs none: of what a pickle may name it knows the few things that tensors are made
of, and each is a description here; anything else is refused by name. Numbers are read from the file as layers pull
them, as from safetensors. Called by `quire.engine.weights.load`.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from quire.engine.errors import WeightError
from quire.engine.weights.checkpoint import Shape
from quire.engine.weights.index import checkpoint_files
from quire.engine.weights.mapped_checkpoint import Entry, MappedCheckpoint
from quire.engine.weights.mapped_file import MappedFile
from quire.engine.weights.pickle_cost import refuse_costly
from quire.engine.weights.tensor_limits import MAX_DIMENSIONS, MAX_NUMBER

_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}
_MAX_PICKLE_BYTES = 100_000_000
_LOCAL_HEADER_BYTES = 30


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: torch.dtype
    key: str


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int  # elements
    shape: Shape
    stride: Shape


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    sizes, strides = tuple(shape), tuple(stride)
    if len(sizes) != len(strides) or len(sizes) > MAX_DIMENSIONS or not all(
            isinstance(n, int) and 0 <= n <= MAX_NUMBER for n in (offset, *sizes, *strides)):
        raise pickle.UnpicklingError("a tensor with a shape that is none")
    return _Tensor(storage, offset, sizes, strides)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no tensor is made of")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("a storage that is none")
        return _Storage(dtype, key)


class PickledCheckpoint(MappedCheckpoint):
    def __init__(self, directory: Path) -> None:
        files = [MappedFile(path) for path in checkpoint_files(directory, "pytorch_model.bin")]
        super().__init__(files, {name: entry for file in files for name, entry in _table(file)})


def _table(file: MappedFile) -> Iterable[tuple[str, Entry]]:
    """Raises WeightError where the file is not such a checkpoint."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if "data.pkl" not in members or members["data.pkl"].file_size > _MAX_PICKLE_BYTES:
                raise WeightError(f"{file.path}: holds no data.pkl of a checkpoint")
            pickled = archive.read(members["data.pkl"])
            refuse_costly(pickled)
            state = _Unpickler(BytesIO(pickled)).load()
    except zipfile.BadZipFile:
        raise WeightError(f"{file.path}: is not in the format that torch.save has written since 1.6; save it again, as "
                          "safetensors") from None
    except Exception as error:  # of a pickle: it may name anything, and end anywhere
        if isinstance(error, WeightError):
            raise
        raise WeightError(f"{file.path}: is not a checkpoint of tensors alone: {error}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise WeightError(f"{file.path}: holds no table of tensors")
    return [(name, _entry(file, members, name, tensor)) for name, tensor in state.items()
            if isinstance(name, str) and isinstance(tensor, _Tensor)]


def _entry(file: MappedFile, members: dict[str, zipfile.ZipInfo], name: str, tensor: _Tensor) -> Entry:
    info = members.get(f"data/{tensor.storage.key}")
    if info is None or info.compress_type != zipfile.ZIP_STORED:
        raise WeightError(f"{file.path}: the numbers of {name!r} are missing or packed")
    size = tensor.storage.dtype.itemsize
    expected = [math.prod(tensor.shape[i + 1:]) for i in range(len(tensor.shape))]
    if any(n > 1 and s != e for n, s, e in zip(tensor.shape, tensor.stride, expected)):
        raise WeightError(f"{file.path}: tensor {name!r} does not lie in rows; save it again, as safetensors")
    if (tensor.offset + math.prod(tensor.shape)) * size > info.file_size:
        raise WeightError(f"{file.path}: tensor {name!r} is larger than its storage")
    with file.span(info.header_offset, info.header_offset + _LOCAL_HEADER_BYTES, name) as header:
        lengths = int.from_bytes(header[26:28].tobytes(), "little") + int.from_bytes(header[28:30].tobytes(), "little")
    begin = info.header_offset + _LOCAL_HEADER_BYTES + lengths + tensor.offset * size
    return Entry(file, tensor.storage.dtype, tensor.shape, begin)
