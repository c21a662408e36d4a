"""With --batch-invariant, log-probabilities are the same to the bit, however a request is computed and beside whom."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from quire import LLM, SamplingParams
from tests.engine.models import tiny
from tests.engine.models.families import write

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

LENGTHS = [1, 2, 15, 16, 17, 33, 60, 64, 70, 75, 40, 3]
WISH = SamplingParams(temperature=0.8, seed=5, max_tokens=20, logprobs=3, ignore_eos=True)
WAYS: dict[str, dict[str, Any]] = {
    "graphs": {}, "kernel by kernel": {"enforce_eager": True}, "in chunks": {"max_num_batched_tokens": 24},
    "without cached prefixes": {"enable_prefix_caching": False},
    "preempted": {"num_gpu_blocks_override": 40, "max_num_batched_tokens": 64}}


def prompts() -> list[list[int]]:
    rng = random.Random(1)
    top = tiny.SIZES["vocab_size"]
    shared = [rng.randrange(3, top) for _ in range(max(LENGTHS))]
    return [shared[:n] for n in LENGTHS] + [[rng.randrange(3, top) for _ in range(n)] for n in LENGTHS]


def told(llm: LLM, wanted: list[list[int]]) -> list[Any]:
    """Tokens, and log-probabilities as they are."""
    outputs = llm.generate([list(ids) for ids in wanted], WISH, use_tqdm=False)
    return [(output.outputs[0].token_ids, [{token: one.logprob for token, one in each.items()}
                                           for each in output.outputs[0].logprobs or []]) for output in outputs]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("case", ["llama", "gemma3", "qwen3-moe"])
def test_no_bit_depends_on_the_batch(case: str, dtype: str, tmp_path: Path) -> None:
    write(tmp_path, case)
    common: dict[str, Any] = {"skip_tokenizer_init": True, "dtype": dtype, "batch_invariant": True,
                              "max_model_len": 128, "max_num_seqs": 32, "gpu_memory_utilization": 0.3}
    alone = None
    for way, args in WAYS.items():
        llm = LLM(str(tmp_path), **common, **args)
        if alone is None:
            alone = [told(llm, [ids])[0] for ids in prompts()]
        for place, (found, right) in enumerate(zip(told(llm, prompts()), alone)):
            assert found[0] == right[0], (way, place)
            for step, (one, other) in enumerate(zip(found[1], right[1])):
                assert one == other, (way, place, step)
        llm.close()
