"""pytorch_model.bin: tensors are read, and nothing that a pickle could do is done."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from quire.engine.errors import WeightError
from quire.engine.weights.pickled import PickledCheckpoint
from tests.engine.models import tiny
from tests.engine.models.paging import PagedRun, load

ALL = slice(None)


def taken(checkpoint: PickledCheckpoint, name: str, rows: slice = ALL, columns: slice = ALL) -> torch.Tensor:
    shape = checkpoint.shape(name)
    assert shape is not None
    part = torch.empty(shape)[rows] if len(shape) == 1 else torch.empty(shape)[rows, columns]
    out = torch.empty(part.shape)
    checkpoint.read(name, out, rows, columns)
    return out


def test_tensors_of_every_kind_are_read_whole_and_in_parts(tmp_path: Path) -> None:
    base = torch.randn(8, 6)
    state = {"whole": base, "tied": base, "tail": base[3:], "half": base.half(), "bf16": base.bfloat16(),
             "vector": base[1], "parameter": torch.nn.Parameter(base + 1), "empty": torch.empty(0, 6), "number": 3}
    torch.save(state, tmp_path / "pytorch_model.bin")
    checkpoint = PickledCheckpoint(tmp_path)
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(taken(checkpoint, name), value.detach().float()), name
    assert torch.equal(taken(checkpoint, "whole", slice(2, 5), slice(1, 4)), base[2:5, 1:4])
    assert set(checkpoint.unread({"whole"})) == state.keys() - {"whole", "number"}


def test_a_model_in_parts_is_what_it_is_in_safetensors(tmp_path: Path) -> None:
    reference = tiny.write(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    state = reference.state_dict()
    names = sorted(state)
    where = {}
    for part, some in enumerate((names[::2], names[1::2])):
        torch.save({name: state[name] for name in some}, tmp_path / f"part{part}.bin")
        where |= dict.fromkeys(some, f"part{part}.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    prompt = list(range(20))
    got = PagedRun(load(tmp_path), 1, 128).step({0: prompt})[0]
    torch.testing.assert_close(got, tiny.logits(reference, prompt), atol=1e-4, rtol=1e-4)


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(("pickled", "said"), [
    (pickle.dumps({"w": _Call(print, "POISON")}), "builtins.print"),
    (pickle.dumps({"w": _Call(eval, "1")}), "builtins.eval"),
    (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
    (b"ctorch\nload\n(S'x'\ntR.", "torch.load"),
    (b"ccollections\nOrderedDict.__init__.__globals__\n.", "__globals__"),
    (b"\x80\x02]q\x00.", "no table of tensors"),
    (b"garbage", "not a checkpoint of tensors alone"),
    (b"", "not a checkpoint of tensors alone"),
])
def test_what_is_no_tensor_is_refused_by_name_and_never_run(tmp_path: Path, capfd: pytest.CaptureFixture[str],
                                                            pickled: bytes, said: str) -> None:
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    with pytest.raises(WeightError, match=said):
        PickledCheckpoint(tmp_path)
    assert "POISON" not in capfd.readouterr().out


def test_a_tensor_beyond_its_storage_and_one_that_lies_in_columns_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(4, 3).T}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightError, match="does not lie in rows"):
        PickledCheckpoint(tmp_path)
    torch.save({"w": torch.randn(400, 3)}, tmp_path / "pytorch_model.bin")
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin") as whole:
        members = {info.filename: whole.read(info) for info in whole.infolist()}
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as cut:
        for name, data in members.items():
            cut.writestr(name, data[:100] if "/data/" in name else data)
    with pytest.raises(WeightError, match="larger than its storage"):
        PickledCheckpoint(tmp_path)


def test_an_old_format_is_told_what_to_do(tmp_path: Path) -> None:
    torch.save({"w": torch.randn(2)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightError, match="save it again, as safetensors"):
        PickledCheckpoint(tmp_path)


@pytest.mark.parametrize(("pickled", "said"), [
    (b"\x80\x02}r\xff\xff\xff\x0f.", "numbers an object 268435455"),  # would take 4 GB, and 20 s
    (b"\x80\x02}p268435455\n.", "numbers an object 268435455"),
    (b"\x80\x02})" + b"\x85" * 10**6 + b"K\x01s.", "nests tuples more than 100 deep"),  # would end the process
    (b"\x80\x02})" + b"\x85q\x010h\x01" * 1000 + b"K\x01s.", "nests tuples more than 100 deep"),
    (b"\x80\x02}" + b"(" * 1000 + b"t" * 1000 + b"K\x01s.", "nests tuples more than 100 deep"),
], ids=["memo", "memo in text", "tuples", "tuples by way of the memo", "tuples to marks"])
def test_a_pickle_that_costs_more_than_its_bytes_is_refused_unread(tmp_path: Path, pickled: bytes, said: str) -> None:
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled)
    with pytest.raises(WeightError, match=said):
        PickledCheckpoint(tmp_path)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_many_tensors_are_read_from_a_pickle_of_any_protocol(tmp_path: Path, protocol: int) -> None:
    state = {f"layers.{i}": torch.full((1,), float(i)) for i in range(300)}
    torch.save(state, tmp_path / "pytorch_model.bin", pickle_protocol=protocol)
    checkpoint = PickledCheckpoint(tmp_path)
    assert set(checkpoint.unread(set())) == state.keys()
    assert taken(checkpoint, "layers.299") == 299


def test_a_name_that_is_no_text_names_no_tensor(tmp_path: Path) -> None:
    torch.save({1: torch.ones(1), 16**5000: torch.ones(1), "w": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert set(PickledCheckpoint(tmp_path).unread(set())) == {"w"}


def test_a_shape_that_no_tensor_has_is_refused(tmp_path: Path) -> None:
    """To work out the steps between rows takes the square of the number of dimensions."""
    head = (b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n"
            b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00")
    for length in (65, 1000):
        numbers = b"(" + b"K\x01" * length + b"t"
        with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
            archive.writestr("archive/data.pkl", head + numbers * 2 + b"tRs.")
        with pytest.raises(WeightError, match="a shape that is none"):
            PickledCheckpoint(tmp_path)
