"""The lazy view from which layers pull their tensors by name, and what every checkpoint format must offer it.

A layer says the shape it expects and which part is this rank's; only that part is read, straight into its place. What
is missing, mis-shaped or never asked for is a WeightError. Refuses to know models and file formats.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch

from quire.engine.errors import WeightError

if TYPE_CHECKING:
    from quire.engine.weights.scheme import Schemes, WeightScheme

Shape = tuple[int, ...]
Rows = slice | tuple[slice, ...]  # in stretches, where a fused tensor holds several things in turns
RowReader = Callable[[torch.Tensor], torch.Tensor]  # row numbers [n] on the CPU -> float32 [n, columns]
ALL = slice(None)


class Checkpoint(ABC):
    """Tensors by their Hugging Face names."""

    num_elements: int  # of all tensors; 0 where nobody knows
    has_any = False  # whatever is asked for is there: random weights

    @abstractmethod
    def shape(self, name: str) -> Shape | None:
        """The tensor's whole shape, or None where there is none of that name."""

    @abstractmethod
    def read(self, name: str, out: torch.Tensor, rows: slice, columns: slice) -> None:
        """Fill `out` (any device, any float type) with that part. Only matrices have columns."""

    def stored_dtype(self, name: str) -> torch.dtype | None:
        """The type in which `read_raw` gives the tensor; None where only `read` can read it."""
        return None

    def read_raw(self, name: str, out: torch.Tensor, rows: slice, columns: slice) -> None:
        """As `read`, without a conversion: `out` has the stored type."""
        raise NotImplementedError

    def block_type(self, name: str) -> str | None:
        """GGML's name of the type whose blocks the matrix's rows are; None: there are none, or `read_blocks` cannot."""
        return None

    def read_blocks(self, name: str, rows: Rows) -> torch.Tensor:
        """Those rows as they are stored: uint8 [rows, blocks, bytes of a block]."""
        raise NotImplementedError

    @abstractmethod
    def unread(self, taken: set[str]) -> Iterable[str]:
        """Names of tensors that are in the files and not in `taken`."""

    def require(self, name: str, shape: Shape) -> None:
        found = self.shape(name)
        if found is None:
            raise WeightError(f"tensor {name!r} of shape {list(shape)} is missing from the checkpoint")
        if found != shape:
            raise WeightError(f"tensor {name!r} has shape {list(found)} in the checkpoint; the model needs "
                              f"{list(shape)}")

    def rows_on_demand(self, name: str) -> RowReader | None:
        """A way to read single rows of a matrix later, also after `close`, where that saves memory."""
        return None

    def close(self) -> None:  # noqa: B027  (nothing to close is the common case)
        """Let go of the files."""


class View:
    """A checkpoint under a name prefix. `device` and `dtype` are those of the tensors handed out. `stays_packed`: what
    has a scheme is multiplied with as it is packed; else layers make floats of it. `cpu_weights`: the form in which
    products on a CPU hold theirs."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype,
                 progress: Callable[[int], None] = lambda elements: None, prefix: str = "",
                 taken: set[str] | None = None, schemes: Schemes | None = None, stays_packed: bool = True,
                 cpu_weights: str = "float32") -> None:
        self.device = device
        self.dtype = dtype
        self._checkpoint = checkpoint
        self._progress = progress
        self._prefix = prefix
        self._taken: set[str] = set() if taken is None else taken
        self._schemes = schemes
        self.stays_packed = stays_packed
        self.cpu_weights = cpu_weights

    def sub(self, name: str) -> View:
        """The view of the module `name`; of "" the view itself."""
        return self._like(self.device, f"{self._prefix}{name}.") if name else self

    def elsewhere(self) -> View:
        """For what is another rank's to hold: checks names and shapes, reads nothing, gives tensors without memory."""
        return self._like(torch.device("meta"), self._prefix)

    def _like(self, device: torch.device, prefix: str) -> View:
        return View(self._checkpoint, device, self.dtype, self._progress, prefix, self._taken, self._schemes,
                    self.stays_packed, self.cpu_weights)

    @property
    def name(self) -> str:
        """Of the module that this is the view of."""
        return self._prefix.rstrip(".")

    def scheme(self, name: str = "", *, is_layer: bool) -> WeightScheme | None:
        """How the weight of the module `name` is packed; None: it is a tensor of floats named weight. `is_layer`: it is
        a linear layer of a decoder, which may be packed where the checkpoint's tensors leave that open."""
        if self._schemes is None:
            return None
        if self.has_any:
            return self._schemes.usual if is_layer else None
        return self._schemes.of(self.sub(name), is_layer=is_layer)

    def has(self, name: str) -> bool:
        return self._checkpoint.shape(self._prefix + name) is not None

    @property
    def has_any(self) -> bool:
        """Whether weights are random, and so any tensor is there."""
        return self._checkpoint.has_any

    def shape(self, name: str) -> Shape | None:
        return self._checkpoint.shape(self._prefix + name)

    def stored_dtype(self, name: str) -> torch.dtype | None:
        """The type in the file; None where the tensor is missing, or is not read as it is stored."""
        return self._checkpoint.stored_dtype(self._prefix + name)

    def require(self, name: str, shape: Shape) -> None:
        """Raises WeightError where `take` would."""
        self._checkpoint.require(self._prefix + name, shape)

    def empty(self, *shape: int) -> torch.Tensor:
        """Where several `take`s will write."""
        return torch.empty(shape, device=self.device, dtype=self.dtype)

    def take(self, name: str, shape: Shape, *, rows: Rows = ALL, columns: slice = ALL, transposed: bool = False,
             out: torch.Tensor | None = None) -> torch.Tensor:
        """That part of the tensor whose whole shape is `shape`, written to `out` where given.

        `transposed`: the checkpoint stores the matrix the other way round, [columns, rows].

        Raises:
            WeightError: the checkpoint has no such tensor, or one of another shape.
        """
        self.require(name, shape[::-1] if transposed else shape)
        name = self._prefix + name
        part = part_shape(shape, rows, columns)
        if out is None:
            out = self.empty(*part)
        assert out.shape == part, (name, out.shape, part)
        if not out.is_meta:
            self._read(name, shape, rows, columns, transposed, out)
        self._took(name, shape)
        return out

    def take_raw(self, name: str, shape: Shape, dtypes: tuple[torch.dtype, ...], *, rows: Rows = ALL,
                 columns: slice = ALL) -> torch.Tensor:
        """That part of the tensor whose whole shape is `shape`, in the type that it is stored in, one of `dtypes`.

        Raises:
            WeightError: the checkpoint has no such tensor, or one of another shape or type.
        """
        self.require(name, shape)
        full = self._prefix + name
        dtype = dtypes[0] if self.has_any else self._checkpoint.stored_dtype(full)
        if dtype not in dtypes:
            wanted = " or ".join(_spelled(kind) for kind in dtypes)
            raise WeightError(f"tensor {full!r} is stored as {_spelled(dtype)}; its quantisation needs {wanted}")
        out = torch.empty(part_shape(shape, rows, columns), dtype=dtype, device=self.device)
        if not out.is_meta:
            for stretch, place in _stretches(rows, shape):
                self._checkpoint.read_raw(full, out[place] if shape else out, stretch, columns)
        self._took(full, shape)
        return out

    def block_type(self, name: str) -> str | None:
        return self._checkpoint.block_type(self._prefix + name)

    def take_blocks(self, name: str, shape: Shape, *, rows: Rows = ALL) -> torch.Tensor:
        """Those rows of the matrix in the blocks that a GGUF file stores: uint8 [rows, blocks, bytes of a block].

        Raises WeightError as `take` does.
        """
        self.require(name, shape)
        full = self._prefix + name
        self._took(full, shape)
        if self.device.type == "meta":
            return torch.empty((part_shape(shape, rows, ALL)[0], 1, 1), dtype=torch.uint8, device=self.device)
        return self._checkpoint.read_blocks(full, rows).to(self.device)

    def skip(self, *names: str) -> None:
        """Counts these as taken where they are there: the model can do without them."""
        for name in names:
            if (shape := self.shape(name)) is not None:
                self._took(self._prefix + name, shape)

    def took(self, is_one: Callable[[str], bool]) -> bool:
        """Whether any tensor of such a name was taken."""
        return any(is_one(name) for name in self._taken)

    def _took(self, name: str, shape: Shape) -> None:
        if name not in self._taken:
            self._taken.add(name)
            self._progress(math.prod(shape))

    def _read(self, name: str, shape: Shape, rows: Rows, columns: slice, transposed: bool, out: torch.Tensor) -> None:
        for stretch, place in _stretches(rows, shape):
            if transposed:
                turned = torch.empty_like(out[place].T, memory_format=torch.contiguous_format)
                self._checkpoint.read(name, turned, columns, stretch)
                out[place].copy_(turned.T)
            else:
                self._checkpoint.read(name, out[place], stretch, columns)

    def rows_on_demand(self, name: str) -> RowReader | None:
        """For a matrix that was taken: its rows out of what the file stores, where keeping that saves memory."""
        return self._checkpoint.rows_on_demand(self._prefix + name)

    def refuse_unread(self, ignorable: Callable[[str], bool]) -> None:
        """Raises WeightError where the checkpoint holds a tensor that no layer took: it is another model's."""
        unread = sorted(name for name in self._checkpoint.unread(self._taken) if not ignorable(name))
        if unread:
            more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
            raise WeightError(f"the checkpoint holds tensors that the model has no place for: "
                              f"{', '.join(unread[:5])}{more}; is its architecture the one that config.json names?")


def _stretches(rows: Rows, shape: Shape) -> Iterator[tuple[slice, slice]]:
    """Each stretch of rows, and where it goes: one behind the other."""
    start = 0
    for stretch in rows if isinstance(rows, tuple) else (rows,):
        end = start + len(range(*stretch.indices(shape[0] if shape else 1)))
        yield stretch, slice(start, end)
        start = end


def _spelled(dtype: torch.dtype | None) -> str:
    return "a type of its file's own" if dtype is None else str(dtype).removeprefix("torch.")


def part_shape(shape: Shape, rows: Rows, columns: slice) -> Shape:
    assert columns == ALL or len(shape) == 2, "columns are a matrix's"
    if not shape:
        return shape
    sizes = list(shape)
    stretches = rows if isinstance(rows, tuple) else (rows,)
    sizes[0] = sum(len(range(*stretch.indices(shape[0]))) for stretch in stretches)
    if columns != ALL:
        sizes[1] = len(range(*columns.indices(sizes[1])))
    return tuple(sizes)
