from __future__ import annotations

import json

import pytest

from quire.engine.errors import ConfigError
from quire.loadtest import workloads

NAMES = ("sharegpt", "prefill", "decode", "single", "prefix")


def test_recorded_workloads_are_what_the_generator_makes():
    assert json.loads(json.dumps(workloads.generate())) == workloads.load()


@pytest.mark.parametrize("name", NAMES)
def test_prompts_have_the_recorded_lengths_and_stay_in_the_vocabulary(name):
    ids, output_lens = workloads.prompts(name, vocab_size=4000)
    assert [[len(i), o] for i, o in zip(ids, output_lens)] == workloads.load()[name]["requests"]
    assert all(workloads.LOWEST_ID <= token < 4000 for prompt in ids for token in prompt)


def test_a_vocabulary_without_ids_to_draw_is_refused():
    with pytest.raises(ConfigError, match="a vocabulary of 1000 tokens is too small"):
        workloads.prompts("single", vocab_size=1000)


def test_prompts_are_the_same_every_time_and_a_shorter_run_is_a_prefix_of_a_longer_one():
    whole, _ = workloads.prompts("sharegpt", 32000, 40)
    assert workloads.prompts("sharegpt", 32000, 40)[0] == whole
    assert workloads.prompts("sharegpt", 32000, 7)[0] == whole[:7]


def test_prefix_workload_shares_exactly_its_prefix():
    shared = workloads.load()["prefix"]["shared_prefix"]
    ids, _ = workloads.prompts("prefix", 32000, 3)
    assert ids[0][:shared] == ids[1][:shared] == ids[2][:shared]
    assert ids[0][shared:] != ids[1][shared:]


def test_every_model_shape_is_a_readable_config():
    shapes = {path.name: json.loads((path / "config.json").read_text()) for path in workloads.MODELS.iterdir()}
    assert set(shapes) == {"llama-7b", "llama-13b", "llama-3.1-8b", "qwen2.5-7b", "qwen2.5-0.5b", "qwen3-8b",
                           "qwen3-30b-a3b", "gemma-3-4b", "llama-7b-awq", "llama-7b-gptq", "qwen2.5-7b-awq",
                           "qwen2.5-7b-gptq", "qwen2-vl-2b", "qwen3-vl-4b"}
    texts = [config.get("text_config", config) for config in shapes.values()]
    assert all(config["hidden_size"] % config["num_attention_heads"] == 0 for config in texts)
