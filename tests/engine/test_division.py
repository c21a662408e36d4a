"""What does not divide over the devices is refused by name."""

from __future__ import annotations

import pytest

from quire.engine.config import EngineArgs
from quire.engine.division import require_divisible
from quire.engine.errors import ConfigError
from quire.engine.model_config import ModelConfig


@pytest.mark.parametrize(("sizes", "what"), [
    ({"tensor_parallel_size": 4}, r"--tensor-parallel-size: the number of attention heads \(6\) does not divide by 4"),
    ({"tensor_parallel_size": 3}, r"--tensor-parallel-size: 3 is not a multiple of the number of KV heads \(2\)"),
    ({"pipeline_parallel_size": 4}, r"--pipeline-parallel-size: the number of layers \(6\) does not divide by 4"),
])
def test_what_does_not_divide_is_named(sizes: dict[str, int], what: str) -> None:
    model = ModelConfig(path="somewhere", file_format="hf", architecture="LlamaForCausalLM", dtype="bfloat16",
                        vocab_size=100, hidden_size=192, num_layers=6, num_heads=6, num_kv_heads=2, head_dim=32,
                        max_position_embeddings=1000)
    require_divisible(EngineArgs(tensor_parallel_size=2, pipeline_parallel_size=3), model)
    with pytest.raises(ConfigError, match=what):
        require_divisible(EngineArgs(**sizes), model)
    with pytest.raises(ConfigError, match="size: LlamaForCausalLM runs by transformers' code, which is not split"):
        require_divisible(EngineArgs(**sizes, model_impl="transformers"), model)
