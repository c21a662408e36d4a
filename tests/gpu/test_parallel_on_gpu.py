"""An engine on several CUDA devices against transformers, as test_engine_on_gpu does for one.

Run with `make test-gpu ARGS=parallel`, on a machine with two GPUs or more.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quire import LLM
from tests.gpu.test_engine_on_gpu import assert_right, checkpoint, empty_device, generate, prompts  # noqa: F401

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

SPLITS = [(2, 1), (1, 2), (4, 1), (2, 2), (1, 4)]  # tensor parallel, pipeline stages
CASES = [
    *((split, "graphs", "bfloat16") for split in SPLITS),
    *((split, "graphs", "float32") for split in [(2, 1), (4, 1), (2, 2)]),
    ((2, 1), "eager", "bfloat16"),
    ((1, 2), "tight", "bfloat16"),
    ((2, 2), "tight", "float32"),
]


@pytest.mark.parametrize(("split", "mode", "dtype"), CASES,
                         ids=[f"TP{split[0]} PP{split[1]} {mode} {dtype}" for split, mode, dtype in CASES])
def test_a_split_model_agrees_with_transformers(checkpoint: Path, prompts: list[list[int]],  # noqa: F811
                                                split: tuple[int, int], mode: str, dtype: str) -> None:
    size, num_stages = split
    if size * num_stages > torch.cuda.device_count():
        pytest.skip("too few GPUs")
    if checkpoint.name.startswith("qwen2") and size == 4:
        pytest.skip("its 14 heads do not divide by 4")
    torch.backends.cuda.matmul.allow_tf32 = False
    room = {"graphs": {}, "eager": {"enforce_eager": True}, "tight": {"num_gpu_blocks_override": 76}}[mode]
    length = 1216 if mode == "tight" else 2048
    llm = LLM(model=str(checkpoint), dtype=dtype, max_model_len=length, kv_cache_memory_bytes=1 << 30,
              skip_tokenizer_init=True, tensor_parallel_size=size, pipeline_parallel_size=num_stages, **room)
    try:
        outputs = generate(llm, prompts[:10] if mode == "tight" else prompts)
        if mode == "graphs":
            assert llm._core._executor.num_graph_steps > 0
        assert_right(outputs, checkpoint, dtype, f"TP{size} PP{num_stages} {mode}")
    finally:
        llm.close()
