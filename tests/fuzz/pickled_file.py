"""pytorch_model.bin. The input is the pickle itself, which is put into the archive that torch.save writes around one:
a fuzzer that had to keep an archive's checksums right would get no further than these. An input that begins as archives
do is taken as the whole file."""

from __future__ import annotations

import zipfile
from contextlib import closing, suppress
from io import BytesIO

import torch

from quire.engine.errors import WeightError
from quire.engine.weights.pickled import PickledCheckpoint
from tests.fuzz import scratch
from tests.fuzz.checkpoint_tensors import read_all


def seeds() -> list[bytes]:
    whole = BytesIO()
    base = torch.arange(12.0).view(3, 4)
    torch.save({"a": base, "tail": base[1:], "half": base[0].half(), "p": torch.nn.Parameter(base), "n": 3}, whole)
    with zipfile.ZipFile(whole) as archive:
        return [archive.read("archive/data.pkl"), whole.getvalue()]


def target(data: bytes) -> None:
    folder = scratch.kept_folder(__name__)
    path = folder / "pytorch_model.bin"
    if data.startswith(b"PK"):
        path.write_bytes(data)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/data/0", bytes(48))
    with suppress(WeightError), closing(PickledCheckpoint(folder)) as checkpoint:
        for name in list(checkpoint.unread(set())):
            with suppress(WeightError):
                read_all(checkpoint, [name])
