"""What the device cannot do is refused by name, before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError
from quire.engine.execution.device import prepare_cpu, settle
from quire.engine.execution.hardware import Hardware, why_unusable
from quire.engine.model_config import ModelConfig


def model(dtype: str = "bfloat16", architecture: str = "LlamaForCausalLM") -> ModelConfig:
    return ModelConfig(path="somewhere", file_format="hf", architecture=architecture, dtype=dtype, vocab_size=100,
                       hidden_size=64, num_layers=6, num_heads=2, num_kv_heads=1, head_dim=32,
                       max_position_embeddings=1000)


OLD_GPU = Hardware(1, "Tesla T4", (7, 5), 16 * 10**9)
NEW_GPU = Hardware(1, "NVIDIA A10", (8, 6), 24 * 10**9)
NO_GPU = Hardware(0)
GEMMAS = ("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM")


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_bfloat16_on_an_old_gpu_is_refused_with_its_name_and_the_way_out(dtype):
    """With the facts and the advice of vLLM's message, which people look up."""
    with pytest.raises(ConfigError, match=r"compute capability of at least 8\.0; your Tesla T4 GPU has compute "
                                          r"capability 7\.5\. Use float16 instead: --dtype=half"):
        settle(EngineArgs(dtype=dtype), model(), OLD_GPU)


def test_it_is_told_which_code_runs_the_model():
    for impl, architecture, is_told in (("auto", "LlamaForCausalLM", False), ("transformers", "LlamaForCausalLM", True),
                                        ("auto", "NobodysForCausalLM", True)):
        with capture_logs() as logs:
            settle(EngineArgs(model_impl=impl), model(architecture=architecture), NO_GPU)
        told = [line for line in logs if "by transformers' code" in line["event"]]
        assert [line["architecture"] for line in told] == [architecture] * is_told


def test_batch_invariance_is_refused_where_it_cannot_hold():
    for args, architecture, why in (({}, "NobodysForCausalLM", "NobodysForCausalLM runs by transformers' code"),
                                    ({"tensor_parallel_size": 4}, "LlamaForCausalLM",
                                     "use --tensor-parallel-size 1 or 2")):
        with pytest.raises(ConfigError, match=f"--batch-invariant: .*{why}"):
            settle(EngineArgs(batch_invariant=True, **args), model(architecture=architecture), NO_GPU)
    assert settle(EngineArgs(batch_invariant=True), model(), NO_GPU).args.batch_invariant


def test_half_on_an_old_gpu_is_taken():
    config = settle(EngineArgs(dtype="half"), model(), OLD_GPU)
    assert (config.device, config.dtype, config.max_num_seqs) == ("cuda", "float16", 256)
    assert config.num_steps_ahead == 1


def test_a_large_gpu_runs_more_rows_and_offline_longer_steps():
    large = Hardware(1, "NVIDIA H200", (9, 0), 150 * 10**9)
    assert settle(EngineArgs(), model(), large).max_num_seqs == 1024
    lengths = [settle(EngineArgs(dtype="half"), model(), hardware, offline=offline).max_num_batched_tokens
               for hardware in (OLD_GPU, large, NO_GPU) for offline in (False, True)]
    assert lengths == [8192, 8192, 8192, 16384, 512, 512]
    assert settle(EngineArgs(max_num_batched_tokens=99), model(), large, offline=True).max_num_batched_tokens == 99


def test_auto_follows_the_checkpoint_on_a_gpu_and_is_float32_on_a_cpu():
    assert settle(EngineArgs(), model("float16"), OLD_GPU).dtype == "float16"
    assert settle(EngineArgs(device="cpu"), model("float16"), OLD_GPU).dtype == "float32"
    assert settle(EngineArgs(device="cpu", dtype="bfloat16"), model(), OLD_GPU).dtype == "bfloat16"
    assert settle(EngineArgs(), model("float16"), NO_GPU).device == "cpu"


@pytest.mark.parametrize("architecture", GEMMAS)
def test_what_overflows_float16_gets_it_only_by_name(architecture: str) -> None:
    gemma = model("float16", architecture)
    assert settle(EngineArgs(), gemma, NEW_GPU).dtype == "bfloat16"
    assert settle(EngineArgs(), gemma, NO_GPU).dtype == "float32"
    with pytest.raises(ConfigError, match=rf"{architecture} overflow float16, and Tesla T4 has no bfloat16\. Use "
                                          "--dtype float32, or half"):
        settle(EngineArgs(), gemma, OLD_GPU)
    with pytest.raises(ConfigError, match="--dtype=half"):
        settle(EngineArgs(), model("bfloat16", architecture), OLD_GPU)
    for hardware, advice in ((OLD_GPU, "--dtype float32"), (NEW_GPU, "--dtype bfloat16"), (NO_GPU, "--dtype float32")):
        with capture_logs() as logged:
            assert settle(EngineArgs(dtype="half"), gemma, hardware).dtype == "float16"
        assert [(line["log_level"], line["advice"]) for line in logged] == [("warning", advice)]
        assert architecture in logged[0]["event"]


def test_only_what_overflows_float16_is_warned_of() -> None:
    with capture_logs() as logged:
        assert settle(EngineArgs(dtype="half"), model(), NEW_GPU).dtype == "float16"
        assert settle(EngineArgs(dtype="float32"), model("float16", GEMMAS[0]), OLD_GPU).dtype == "float32"
        assert settle(EngineArgs(dtype="bfloat16"), model("float16", GEMMAS[0]), NEW_GPU).dtype == "bfloat16"
    assert logged == []


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        settle(EngineArgs(device="cuda"), model(), NO_GPU)


def test_more_ranks_than_gpus_are_refused():
    with pytest.raises(ConfigError, match="tensor-parallel-size times --pipeline-parallel-size is 4, and torch sees 1"):
        settle(EngineArgs(tensor_parallel_size=2, pipeline_parallel_size=2), model(), OLD_GPU)


def test_a_pipeline_has_as_many_steps_in_flight_as_stages():
    assert settle(EngineArgs(pipeline_parallel_size=3), model(), NO_GPU).num_steps_ahead == 3


def test_a_context_beyond_the_model_is_refused():
    with pytest.raises(ConfigError, match="1001 is more than the 1000 positions"):
        settle(EngineArgs(device="cpu", max_model_len=1001), model(), NO_GPU)


def machine(root: Path, *, devices: int = 1, mode: int = 0o666) -> Path:
    """The files of a machine with NVIDIA's driver."""
    (root / "proc/driver/nvidia").mkdir(parents=True)
    (root / "proc/driver/nvidia/version").write_text("NVRM version")
    (root / "dev").mkdir()
    for number in range(devices):
        (root / f"dev/nvidia{number}").touch()
        (root / f"dev/nvidia{number}").chmod(mode)
    return root


def test_a_machine_without_a_gpu_has_none_that_is_unusable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert why_unusable(tmp_path) == ""
    assert why_unusable(machine(tmp_path / "gpu")) != ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert why_unusable(tmp_path / "gpu") == "", "it was hidden on purpose"


def test_why_a_gpu_cannot_be_used_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nUpdate it.")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.version.cuda", None)
    assert "built without CUDA" in why_unusable(machine(tmp_path / "a"))
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.init", init)
    assert "too old (found version 11040)" in why_unusable(tmp_path / "a")
    assert "--gpus all" in why_unusable(machine(tmp_path / "b", devices=0))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "may not open /dev/nvidia0" in why_unusable(tmp_path / "a")


def test_a_gpu_that_cannot_be_used_is_an_error_or_said_aloud() -> None:
    unusable = Hardware(0, unusable="the driver is too old")
    with pytest.raises(ConfigError, match="cuda was asked for, but the driver is too old"):
        settle(EngineArgs(device="cuda"), model(), unusable)
    with capture_logs() as logged:
        assert settle(EngineArgs(), model(), unusable).device == "cpu"
        assert settle(EngineArgs(device="cpu"), model(), unusable).device == "cpu"
        assert settle(EngineArgs(), model(), NO_GPU).device == "cpu"
    assert [(line["log_level"], line["reason"]) for line in logged] == [("warning", "the driver is too old")]


def test_threads_are_those_of_the_flag_or_of_openmps_variable_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        prepare_cpu(EngineArgs(cpu_threads=3))
        assert torch.get_num_threads() == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "3")  # as torch has found it
        prepare_cpu(EngineArgs())
        assert torch.get_num_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        prepare_cpu(EngineArgs())
        assert torch.get_num_threads() == len(os.sched_getaffinity(0))
    finally:
        torch.set_num_threads(before)
