"""Random weights made on the device, for measuring speed without a checkpoint. Same seed, same weights.

Called by `quire.engine.weights.load` for `--load-format dummy`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch

from quire.engine.weights.checkpoint import Checkpoint, Shape

_QUANTISED_STD = 5.0  # of four random bits, about


class DummyCheckpoint(Checkpoint):
    """Any tensor of any shape that is required; none that is optional."""

    num_elements = 0
    has_any = True

    def __init__(self, seed: int, std: float) -> None:
        self._seed = seed
        self._std = std

    def shape(self, name: str) -> Shape | None:
        return None

    def require(self, name: str, shape: Shape) -> None:
        """Anything may be asked for."""

    def read(self, name: str, out: torch.Tensor, rows: slice, columns: slice) -> None:
        """Norm weights are 1 and biases 0, as before training; ranks get different parts by their offset."""
        if out.dim() == 1:
            out.fill_(0.0 if name.endswith("bias") else 1.0)
            return
        out.normal_(0.0, self._std, generator=self._generator(name, out, rows, columns))

    def read_raw(self, name: str, out: torch.Tensor, rows: slice, columns: slice) -> None:
        """Scales as large as weights may be, and any bits that are weights."""
        if out.is_floating_point() and out.dtype.itemsize > 1:
            out.fill_(self._std / _QUANTISED_STD)
            return
        generator = self._generator(name, out, rows, columns)
        if out.dtype == torch.float8_e4m3fn:
            out.copy_(torch.randn(out.shape, generator=generator, device=out.device))
        else:
            out.random_(generator=generator)

    def _generator(self, name: str, out: torch.Tensor, rows: slice, columns: slice) -> torch.Generator:
        generator = torch.Generator(out.device)
        generator.manual_seed(zlib.crc32(f"{self._seed} {name} {rows.start} {columns.start}".encode()))
        return generator

    def unread(self, taken: set[str]) -> Iterable[str]:
        return ()
