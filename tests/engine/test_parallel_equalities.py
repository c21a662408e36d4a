"""One engine on several ranks against the same engine on one: the same tokens, whatever is split and how."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from quire import LLM, SamplingParams
from quire.engine.errors import ConfigError
from tests.engine.models import tiny

# Four query heads for TP 4, four layers for PP 4; an odd vocabulary, of which the last rank has less.
FAMILIES = ("llama", "mistral", "qwen2")
SHAPE = {"vocab_size": 97, "num_hidden_layers": 4, "num_key_value_heads": 2}
rng = random.Random(7)
PROMPTS = [[rng.randrange(97) for _ in range(n)] for n in (1, 2, 15, 16, 17, 33, 60, 90)]
# A beginning that later prompts find in the cache.
PROMPTS += [PROMPTS[-1][:64] + prompt for prompt in PROMPTS[:4]]
SAMPLING = [
    SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=3),
    SamplingParams(temperature=1.0, seed=11, max_tokens=30, ignore_eos=True),
    SamplingParams(temperature=0.8, top_p=0.9, top_k=20, seed=5, max_tokens=20, ignore_eos=True, n=2),
    SamplingParams(temperature=0.7, seed=3, repetition_penalty=1.2, frequency_penalty=0.3, max_tokens=25, min_tokens=9,
                   ignore_eos=True),
]
# So little room that steps chunk prompts and preempt requests.
TIGHT = {"num_gpu_blocks_override": 14, "max_num_batched_tokens": 48, "max_num_seqs": 8}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, path in paths.items():
        tiny.write(path, family, **SHAPE)
    return paths


def answers(path: Path, **args: Any) -> list[tuple[list[int], list[int] | None]]:
    """What is sampled, and by logprobs what else was likely; with rooms in the engine for a while only."""
    llm = LLM(str(path), skip_tokenizer_init=True, device="cpu", dtype="float32", max_model_len=160, **args)
    try:
        params = [SAMPLING[i % len(SAMPLING)] for i in range(len(PROMPTS))]
        outputs = llm.generate([{"prompt_token_ids": p} for p in PROMPTS], params, use_tqdm=False)
        if "num_gpu_blocks_override" in args:
            assert llm._core.scheduler.num_preemptions > 0
        return [(sample.token_ids, sample.logprobs and [sorted(place) for place in sample.logprobs])
                for output in outputs for sample in output.outputs]
    finally:
        llm.close()


@pytest.fixture(scope="module")
def on_one_rank(checkpoints: dict[str, Path]) -> dict[str, Any]:
    return {family: answers(path) for family, path in checkpoints.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_equal_one(family: str, checkpoints: dict[str, Path], on_one_rank: dict[str, Any]) -> None:
    assert answers(checkpoints[family], tensor_parallel_size=2) == on_one_rank[family]


def test_two_stages_equal_one(checkpoints: dict[str, Path], on_one_rank: dict[str, Any]) -> None:
    assert answers(checkpoints["llama"], pipeline_parallel_size=2, **TIGHT) == on_one_rank["llama"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(4, 1), (1, 2), (1, 4), (2, 2)], ids="TP{0[0]} PP{0[1]}".format)
@pytest.mark.parametrize("room", [{}, TIGHT], ids=["roomy", "tight"])
def test_any_split_equals_one_rank(family: str, shape: tuple[int, int], room: dict[str, int],
                                   checkpoints: dict[str, Path], on_one_rank: dict[str, Any]) -> None:
    sizes = {"tensor_parallel_size": shape[0], "pipeline_parallel_size": shape[1]}
    assert answers(checkpoints[family], **sizes, **room) == on_one_rank[family]


def test_ranks_and_stages_together_equal_one(checkpoints: dict[str, Path], on_one_rank: dict[str, Any]) -> None:
    sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    assert answers(checkpoints["qwen2"], **sizes, **TIGHT) == on_one_rank["qwen2"]


@pytest.mark.parametrize(("sizes", "what"), [
    ({"tensor_parallel_size": 3}, r"--tensor-parallel-size: 3 is not a multiple of the number of KV heads \(2\)"),
    ({"pipeline_parallel_size": 3}, r"--pipeline-parallel-size: the number of layers \(4\) does not divide by 3"),
    # Without a cluster: it is not asked for devices first.
    ({"pipeline_parallel_size": 3, "distributed_executor_backend": "ray"}, "does not divide by 3"),
])
def test_what_does_not_divide_is_refused_by_name(sizes: dict[str, Any], what: str,
                                                 checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=what):
        LLM(str(checkpoints["llama"]), skip_tokenizer_init=True, device="cpu", **sizes)
