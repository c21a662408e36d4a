"""A checkpoint that does not fit its model is refused by the name of the tensor; one that fits is read exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire.engine.errors import WeightError
from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import View
from quire.engine.weights.safetensors import SafetensorsCheckpoint
from tests.engine.models import tiny
from tests.engine.models.paging import load


def view_of(path: Path, dtype: torch.dtype = torch.float32) -> View:
    return View(SafetensorsCheckpoint(path), torch.device("cpu"), dtype)


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, torch.Tensor]:
    made = {"a.weight": torch.randn(6, 4), "a.bias": torch.randn(6), "half": torch.randn(4, 2).half(),
            "brain": torch.randn(4, 2).bfloat16(), "long": torch.arange(4)}
    save_file(made, tmp_path / "model.safetensors")
    return made


def test_any_part_of_a_tensor_is_read_exactly(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    view = view_of(tmp_path).sub("a")
    whole = tensors["a.weight"]
    assert torch.equal(view.take("weight", (6, 4)), whole)
    assert torch.equal(view.take("weight", (6, 4), rows=slice(2, 5)), whole[2:5])
    assert torch.equal(view.take("weight", (6, 4), columns=slice(1, 3)), whole[:, 1:3])
    assert torch.equal(view.take("bias", (6,), rows=slice(4, 6)), tensors["a.bias"][4:])
    fused = view.empty(8, 4)
    view.take("weight", (6, 4), out=fused[2:])
    assert torch.equal(fused[2:], whole)


@pytest.mark.parametrize("name", ["half", "brain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_floats_are_converted_to_the_models_type(name: str, dtype: torch.dtype, tensors: dict[str, torch.Tensor],
                                                 tmp_path: Path) -> None:
    assert torch.equal(view_of(tmp_path, dtype).take(name, (4, 2)), tensors[name].to(dtype))


def test_what_is_not_a_float_is_refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(WeightError, match="'long' has type I64"):
        view_of(tmp_path).take("long", (4,))


def test_errors_name_the_tensor_and_both_shapes(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    view = view_of(tmp_path).sub("a")
    with pytest.raises(WeightError, match=r"'a.weight' has shape \[6, 4\].*needs \[4, 6\]"):
        view.take("weight", (4, 6))
    with pytest.raises(WeightError, match=r"'a.gain' of shape \[6\] is missing"):
        view.take("gain", (6,))


def _edit(path: Path, change: dict[str, torch.Tensor | None]) -> None:
    tensors = load_file(path / "model.safetensors") | change
    save_file({name: value for name, value in tensors.items() if value is not None}, path / "model.safetensors")


def test_a_model_refuses_missing_and_left_over_tensors(tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama")
    _edit(tmp_path, {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    load(tmp_path)  # a buffer of old transformers, known to be of no use
    _edit(tmp_path, {"model.layers.1.self_attn.q_proj.bias": torch.zeros(64)})
    with pytest.raises(WeightError, match=r"no place for: model\.layers\.1\.self_attn\.q_proj\.bias"):
        load(tmp_path)
    _edit(tmp_path, {"model.layers.1.self_attn.q_proj.bias": None, "model.layers.2.mlp.up_proj.weight": None})
    with pytest.raises(WeightError, match=r"'model.layers.2.mlp.up_proj.weight' of shape \[80, 64\] is missing"):
        load(tmp_path)


def test_a_tied_model_may_hold_its_head_twice(tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama", tie_word_embeddings=True)
    _edit(tmp_path, {"lm_head.weight": torch.zeros(97, 64)})
    load(tmp_path)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(WeightError, match=r"model\.safetensors"):
            load(tmp_path)


def test_a_malformed_header_is_refused(tmp_path: Path) -> None:
    for header in (b"[1]", b"{", b'{"a": {"dtype": "F32"}}', b'{"a": 3}',
                   b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', b"[" * 100_000,
                   b'{"a": {"dtype": "F4", "shape": ["b"], "data_offsets": [0, 4]}}',  # of a type that is not read
                   b'{"a": {"dtype": 4, "shape": [1], "data_offsets": [0, 4]}}',
                   b'{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}',
                   b'{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}',
                   b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}'):
        (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
        with pytest.raises(WeightError, match=r"model\.safetensors"):
            SafetensorsCheckpoint(tmp_path)


def test_an_index_names_files_of_its_directory_only(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for name, message in (("../other.safetensors", "not a file of that directory"), ("gone.safetensors", "not there"),
                          (5, "is not an index of checkpoint files")):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(WeightError, match=message):
            SafetensorsCheckpoint(tmp_path)


@pytest.mark.parametrize(("family", "num_kv_heads"), [("llama", 2), ("llama", 1), ("qwen2", 2)])
def test_two_ranks_hold_the_whole_between_them(family: str, num_kv_heads: int, tmp_path: Path) -> None:
    tiny.write(tmp_path, family, num_key_value_heads=num_kv_heads)
    whole = load(tmp_path).layers[1]
    ranks = [load(tmp_path, parallel=Parallel(rank, 2)) for rank in range(2)]
    assert [rank.num_kv_heads for rank in ranks] == [max(1, num_kv_heads // 2)] * 2
    halves = [rank.layers[1] for rank in ranks]
    x = torch.randn(5, 64)
    q, k, v = whole.attention._qkv(x).split((64, 16 * num_kv_heads, 16 * num_kv_heads), dim=1)
    kv_size = 16 * max(1, num_kv_heads // 2)
    parts = [half.attention._qkv(x).split((32, kv_size, kv_size), dim=1) for half in halves]
    torch.testing.assert_close(torch.cat([p[0] for p in parts], 1), q)
    for i, expected in ((1, k), (2, v)):
        if num_kv_heads == 1:  # fewer KV heads than ranks: each holds the same one
            for part in parts:
                torch.testing.assert_close(part[i], expected)
        else:
            torch.testing.assert_close(torch.cat([p[i] for p in parts], 1), expected)
    y = torch.randn(5, 80)
    down = sum(half.mlp._down._product(part) for half, part in zip(halves, y.split(40, 1)))
    torch.testing.assert_close(down, whole.mlp._down(y))
    assert torch.equal(torch.cat([rank.embedding.weight for rank in ranks]), load(tmp_path).embedding.weight)
