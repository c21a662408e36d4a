"""What the device cannot do is refused by name, before anything is loaded."""

from __future__ import annotations

import pytest
import torch

from engine.config import EngineArgs
from engine.errors import ConfigError
from engine.execution.device import settle
from engine.model_config import ModelConfig


def model(dtype: str = "bfloat16") -> ModelConfig:
    return ModelConfig(path="somewhere", file_format="hf", architecture="LlamaForCausalLM", dtype=dtype, vocab_size=100,
                       hidden_size=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=32,
                       max_position_embeddings=1000)


@pytest.fixture
def old_gpu(monkeypatch):
    """A Tesla T4, as torch would describe it; nothing is run on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: type("P", (), {"total_memory": 16 * 10**9}))


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_bfloat16_on_an_old_gpu_is_refused_with_its_name_and_the_way_out(old_gpu, dtype):
    with pytest.raises(ConfigError, match=r"capability 8\.0 or higher; Tesla T4 has 7\.5\. Use --dtype half"):
        settle(EngineArgs(dtype=dtype), model())


def test_half_on_an_old_gpu_is_taken(old_gpu):
    config = settle(EngineArgs(dtype="half"), model())
    assert (config.device, config.dtype, config.max_num_seqs) == ("cuda", "float16", 256)
    assert config.async_scheduling


def test_auto_follows_the_checkpoint_on_a_gpu_and_is_float32_on_a_cpu(old_gpu):
    assert settle(EngineArgs(), model("float16")).dtype == "float16"
    assert settle(EngineArgs(device="cpu"), model("float16")).dtype == "float32"
    assert settle(EngineArgs(device="cpu", dtype="bfloat16"), model()).dtype == "bfloat16"


def test_a_gpu_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        settle(EngineArgs(device="cuda"), model())


def test_a_context_beyond_the_model_is_refused():
    with pytest.raises(ConfigError, match="1001 is more than the 1000 positions"):
        settle(EngineArgs(device="cpu", max_model_len=1001), model())
