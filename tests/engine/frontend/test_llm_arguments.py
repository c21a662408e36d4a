"""What LLM, LLM.generate and LLM.chat take, and what they say of the rest."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from quire import LLM, SamplingParams
from quire.engine.errors import ConfigError, InvalidRequestError
from quire.engine.frontend.unsupported import asked_for
from quire.engine.frontend.vllm_arguments import VLLM_ARGUMENTS
from tests.engine.models import tiny

HI = {"role": "user", "content": "Hi"}
PARAMS = SamplingParams(temperature=0, max_tokens=2, detokenize=False, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("model")
    tiny.write(path, "llama")
    llm = LLM(model=str(path), skip_tokenizer_init=True, device="cpu")
    yield llm
    llm.close()


def test_prompts_may_come_one_by_one(llm: LLM) -> None:
    prompts = [[1, 2], [3, 4], [5, 6]]
    listed = llm.generate(prompts, PARAMS, use_tqdm=False)
    drawn: Any = (prompt for prompt in prompts)
    for outputs in (listed, llm.generate(drawn, PARAMS, use_tqdm=False)):
        assert [output.prompt_token_ids for output in outputs] == prompts
    assert [output.prompt_token_ids for output in llm.generate([7, 8], PARAMS, use_tqdm=False)] == [[7, 8]]
    assert llm.generate([], PARAMS, use_tqdm=False) == []


def test_calls_of_several_threads_wait_for_each_other(llm: LLM) -> None:
    prompts = [[number, 2, 3] for number in range(1, 9)]
    alone = [llm.generate([prompt], PARAMS, use_tqdm=False)[0].outputs[0].token_ids for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda prompt: llm.generate([prompt], PARAMS, use_tqdm=False)[0], prompts))
    assert [output.prompt_token_ids for output in together] == prompts
    assert [output.outputs[0].token_ids for output in together] == alone


def test_numbers_of_numpy_are_as_good_as_pythons(llm: LLM) -> None:
    ids: Any = list(np.array([3, 4]))
    for prompts in (ids, [ids], {"prompt_token_ids": ids}):
        output, = llm.generate(prompts, PARAMS, use_tqdm=False, priority=list(np.array([1])))
        assert output.prompt_token_ids == [3, 4] and {type(id) for id in output.prompt_token_ids} == {int}


def test_what_is_too_long_is_told_what_sets_the_limit(tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama")
    for limit, said in (({"max_model_len": 20}, "as --max-model-len says"),
                        ({"num_gpu_blocks_override": 3}, r"more cache \(--num-gpu-blocks-override")):
        llm = LLM(str(tmp_path), skip_tokenizer_init=True, device="cpu", **limit)
        with pytest.raises(InvalidRequestError, match=said):
            llm.generate([list(range(1, 60))], PARAMS, use_tqdm=False)
        llm.close()


@pytest.mark.parametrize("prompts", [5, None, 1.5])
def test_what_is_no_prompt_is_named(llm: LLM, prompts: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"prompts must be .* got {type(prompts).__name__}"):
        llm.generate(prompts, PARAMS)


@pytest.mark.parametrize("params", [{"max_tokens": 2}, [{"max_tokens": 2}], 5])
def test_what_are_no_parameters_is_named(llm: LLM, params: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"sampling_params must be .* got {type(params).__name__}"):
        llm.generate([[1, 2]], params)


@pytest.mark.parametrize(("prompts", "named"), [
    ({"prompt_token_ids": 5}, "must be a list that holds only integers, got 5"),
    ({"prompt_token_ids": "ab"}, "must be a list that holds only integers, got 'ab'"),
    ([["a"]], r"must be a list that holds only integers, got \['a'\]"),
    ({5: 1, "x": 2}, r"prompt holds \[5, 'x'\]"),
    ({"prompt": 5, "prompt_token_ids": [1]}, "must be text, got 5"),
    (b"abc", "got bytes"),
    ([5.5], "got float"),
])
def test_a_prompt_of_no_known_form_is_named(llm: LLM, prompts: Any, named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        llm.generate(prompts, PARAMS, use_tqdm=False)


@pytest.mark.parametrize("priority", [5, "a", ["a"], [1.5], [None], [2**40], [1, 2]])
def test_priorities_are_integers_one_for_each_prompt(llm: LLM, priority: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"^priority "):
        llm.generate([[1, 2]], PARAMS, use_tqdm=False, priority=priority)


def test_what_asks_for_nothing_is_taken_silently(llm: LLM) -> None:
    for nothing in (None, {}):
        assert llm.generate({"prompt_token_ids": [1], "multi_modal_data": None, "cache_salt": None},  # type: ignore[arg-type]
                            PARAMS, use_tqdm=False, lora_request=None, priority=None, tokenization_kwargs=nothing,
                            mm_processor_kwargs=nothing)


@pytest.mark.parametrize("name", ["lora_request", "tokenization_kwargs"])
def test_what_asks_for_more_is_refused_by_name(llm: LLM, name: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"^{name} is not supported"):
        llm.generate([[1, 2]], PARAMS, use_tqdm=False, **{name: {"a": 1}})


@pytest.mark.parametrize(("messages", "named"), [
    ("Hi", "must be a list of messages .* or a list of such lists; got 'Hi'"),
    (HI, "must be a list of messages"),
    (None, "must be a list of messages"),
    (5, "must be a list of messages"),
    (["Hi"], r"messages\[0\] must be a dict with 'role' and 'content', got 'Hi'"),
    ([[HI], ["Hi"]], r"messages\[1\]\[0\] must be a dict"),
    ([HI, [HI]], r"messages\[1\] must be a dict"),
    ([[HI], []], r"messages\[1\] must hold at least one message"),
    ([{"role": "user"}], r"messages\[0\]\['content'\] must be text or a list of text parts, got None"),
    ([HI, {"role": "user", "content": 5}], r"messages\[1\]\['content'\] .* got 5"),
    ([{"content": "Hi"}], r"messages\[0\]\['role'\] must be text, got None"),
])
def test_what_are_no_messages_is_named(llm: LLM, messages: Any, named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named) as caught:
        llm.chat(messages, PARAMS)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(("name", "value"), [
    ("chat_template", 5), ("chat_template_kwargs", 5), ("chat_template_kwargs", {5: 1}),
    ("chat_template_kwargs", {"tools": []}), ("chat_template_kwargs", {"add_generation_prompt": False}),
    ("chat_template_content_format", "openai"),
])
def test_an_argument_of_chat_that_cannot_be_served_is_named(llm: LLM, name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=rf"^{name} ") as caught:
        llm.chat([HI], PARAMS, **{name: value})
    assert caught.value.param == name


def test_an_engine_built_with_defaults_of_vllm_runs(tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama")
    llm = LLM(str(tmp_path), runner="auto", convert="auto", tokenizer=None, tokenizer_mode="auto",
              skip_tokenizer_init=True, trust_remote_code=False, allowed_local_media_path="",
              allowed_media_domains=None, tensor_parallel_size=1, dtype="auto", quantization=None, revision=None,
              tokenizer_revision=None, chat_template=None, seed=None, gpu_memory_utilization=0.9, swap_space=4,
              cpu_offload_gb=0, enforce_eager=False, max_seq_len_to_capture=8192, disable_custom_all_reduce=False,
              disable_async_output_proc=False, hf_token=None, hf_overrides=None, mm_processor_kwargs=None,
              pooler_config=None, compilation_config=None, logits_processors=None, structured_outputs_config=None,
              max_model_len=None, block_size=None, enable_prefix_caching=None, enable_chunked_prefill=True,
              disable_log_stats=True, kv_cache_dtype="auto", speculative_config=None, enable_lora=False)
    assert llm.generate([[1, 2]], PARAMS, use_tqdm=False)[0].finished
    assert llm.info.block_size == 16
    llm.close()


def test_engine_arguments_that_ask_for_something_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        asked_for({"rope_theta": 5, "enable_lora": True, "max_model_len": 5, "cpu_offload_gb": 0})
    assert caught.value.problems == [VLLM_ARGUMENTS[name].problem(name, value)
                                     for name, value in (("rope_theta", 5), ("enable_lora", True))]
    assert "is not supported by this version: " in caught.value.problems[0]


def test_what_only_says_how_fast_is_passed_over_with_a_warning() -> None:
    with capture_logs() as logged:
        assert asked_for({"swap_space": 16, "max_num_queued_reqs": 7, "max_model_len": -1, "max_num_seqs": 3,
                          "enable_chunked_prefill": True}) == {"max_queued_requests": 7, "max_num_seqs": 3}
    assert [line["event"].partition(": KV")[0] for line in logged] == ["swap_space: 16 has no effect"]


def test_an_engine_argument_that_nobody_knows_is_refused_even_as_none() -> None:
    with pytest.raises(ConfigError, match="there is no engine argument 'quantisation'"):
        LLM(quantisation=None)
