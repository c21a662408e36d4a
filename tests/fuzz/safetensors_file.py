"""model.safetensors: its header, and the tensors that it says are there."""

from __future__ import annotations

from contextlib import closing, suppress

import torch
from safetensors.torch import save

from quire.engine.errors import WeightError
from quire.engine.weights.safetensors import SafetensorsCheckpoint
from tests.fuzz import scratch
from tests.fuzz.checkpoint_tensors import read_all


def seeds() -> list[bytes]:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.tensor([7])}
    return [save(tensors), save({"a": torch.zeros(2, 2).half()}, {"format": "pt"})]


def target(data: bytes) -> None:
    folder = scratch.kept_folder(__name__)
    (folder / "model.safetensors").write_bytes(data)
    with suppress(WeightError), closing(SafetensorsCheckpoint(folder)) as checkpoint:
        for name in sorted(checkpoint.unread(set())):
            with suppress(WeightError):
                read_all(checkpoint, [name])
