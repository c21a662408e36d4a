"""A model too large for the machine is refused before it is read, with what it needs and what there is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from quire import LLM
from quire.engine import memory_need
from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError, MemoryShortageError, PassingError, WeightError
from quire.engine.execution import kv_cache
from quire.engine.kv_groups import BlockNeed
from quire.engine.memory_need import MemoryNeed
from quire.engine.oom_kills import OomKills
from quire.engine.quantization_config import Quantization
from quire.engine.weights.locate import resolve_model
from quire.engine.weights.size import weight_bytes

GIB = 2**30
SMOLLM2_ELEMENTS = 134_515_008


def test_weights_are_counted_as_they_are_held() -> None:
    model = resolve_model(EngineArgs())
    assert weight_bytes(model, "float32") == 2 * weight_bytes(model, "float16") == 4 * SMOLLM2_ELEMENTS
    assert weight_bytes(model, "float32", dummy=True) == pytest.approx(4 * SMOLLM2_ELEMENTS, rel=0.001), "by its shape"


def save(directory: Path, name: str, shapes: dict[str, list[int]], dtype: str = "BF16") -> None:
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for tensor, shape in shapes.items():
        table[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
    raw = json.dumps(table).encode()
    (directory / name).write_bytes(len(raw).to_bytes(8, "little") + raw)


def test_packed_weights_are_counted_as_they_are_packed(tmp_path: Path) -> None:
    save(tmp_path, "a.safetensors", {"x.qweight": [1000, 10]}, "I32")
    save(tmp_path, "b.safetensors", {"x.scales": [8, 80], "norm.weight": [64]}, "F16")
    save(tmp_path, "c.safetensors", {"y.weight": [30, 20], "0.experts.3.w1.weight": [30, 20]}, "F8_E4M3")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": {name: f"{name}.safetensors" for name in "abc"}}))
    model = replace(resolve_model(EngineArgs()), path=str(tmp_path), file_format="hf",
                    quantization=Quantization("gptq"))
    assert weight_bytes(model, "float16") == 40_000 + 2 * 704 + 600 + 2 * 600
    assert weight_bytes(model, "float16", packed=False) == 2 * (80_000 + 704 + 600 + 600)


def test_of_a_checkpoint_the_files_that_its_index_names_are_counted_by_their_headers(tmp_path: Path) -> None:
    save(tmp_path, "a.safetensors", {"x": [1000, 10], "y": [7]})
    save(tmp_path, "b.safetensors", {"z": [3, 3]})
    save(tmp_path, "consolidated.safetensors", {"x": [1000, 10]})  # the same again, as some repositories have it
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}))
    model = replace(resolve_model(EngineArgs()), path=str(tmp_path), file_format="hf")
    assert weight_bytes(model, "float32") == 4 * 10_016
    (tmp_path / "b.safetensors").write_bytes(b"\xff" * 4)
    with pytest.raises(WeightError, match=r"b\.safetensors"):
        weight_bytes(model, "float32")


@pytest.mark.parametrize(("free", "total", "error"), [(GIB // 2, GIB, MemoryShortageError),
                                                      (GIB // 2, GIB // 2, ConfigError)])
def test_what_does_not_fit_is_refused_before_it_is_read(free: int, total: int, error: type[ConfigError],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_need, "free_and_total", lambda: (free, total))
    monkeypatch.setattr("quire.engine.weights.load.load_model", lambda *_: pytest.fail("it was read"))
    with pytest.raises(error, match=r"^--model: .* needs 0\.7 GiB of memory, 0\.5 GiB for weights in float32 and 0\.2 "
                                    r"GiB for KV cache, and 0\.5 GiB of") as caught:
        LLM(device="cpu")
    assert isinstance(caught.value, PassingError) is (error is MemoryShortageError), "exit code 3, or 2"


def test_each_rank_of_this_machine_has_a_cache_and_a_clusters_are_not_all_here() -> None:
    model = resolve_model(EngineArgs())
    of_two = {"tensor_parallel_size": 2, "kv_cache_memory_bytes": GIB}
    assert MemoryNeed.of(EngineArgs(**of_two), model, "float32", 4 * GIB) == MemoryNeed(4 * SMOLLM2_ELEMENTS, 2 * GIB)
    cluster = EngineArgs(**of_two, distributed_executor_backend="ray")
    assert MemoryNeed.of(cluster, model, "float32", 4 * GIB) == MemoryNeed(2 * SMOLLM2_ELEMENTS, GIB)


def test_windows_need_the_cache_that_they_hold_and_not_that_of_all_layers() -> None:
    gemma = {"model": "loadtest/models/gemma-3-4b", "load_format": "dummy"}
    model = resolve_model(EngineArgs(**gemma))
    block = kv_cache.block_bytes(5, model.num_kv_heads, model.head_dim, 16, torch.float32)
    held = BlockNeed(model.kv_groups.windows, 16, 512).blocks_for(32768)
    for args, blocks in (({"max_model_len": 32768}, held), ({"num_gpu_blocks_override": 100}, 100)):
        assert MemoryNeed.of(EngineArgs(**gemma, **args), model, "float32", 100 * GIB).cache == blocks * block
    assert held * 5 < 0.25 * 34 * 32768 / 16, "blocks of a layer"


@pytest.mark.parametrize(("group", "machine", "cause"), [
    ("1 -> 2", "1 -> 2", "killed for memory"),
    ("1 -> 1", "1 -> 2", "killed, probably for memory"),
    ("1 -> 1", "1 -> 1", "killed from outside"),
    ("none", "1 -> 1", "killed, probably for memory"),
    ("none", "none", "killed, probably for memory"),
])
def test_sigkill_is_explained_by_what_the_kernel_counts(group: str, machine: str, cause: str, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/pod/container\n")
    (tmp_path / "cgroup/pod/container").mkdir(parents=True)

    def count(moment: int) -> None:
        for told, file, text in ((group, "cgroup/pod/container/memory.events", "low 0\noom 7\noom_kill {}\n"),
                                 (machine, "vmstat", "nr_free_pages 5\noom_kill {}\n")):
            if told != "none":
                (tmp_path / file).write_text(text.format(told.split(" -> ")[moment]))

    count(0)
    kills = OomKills(f"{tmp_path}/vmstat", f"{tmp_path}/cgroup", f"{tmp_path}/own")
    count(1)
    assert kills.cause(-9) == cause
    assert kills.cause(-11) == kills.cause(1) == "crash"
