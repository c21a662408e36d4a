"""The engine against itself and transformers: the same tokens whatever the batch, chunks, cache and pressure."""

from __future__ import annotations

import random

import pytest

from quire import LLM, SamplingParams
from quire.engine.execution import warm_up

NEW_TOKENS = 16
TEXT = (
    "The lighthouse keeper climbed the stairs every evening to light the lamp. In winter the sea rose against the "
    "rocks, and the windows shook; in summer the light was hardly needed. He counted the ships that passed, wrote "
    "their names into a book with a blue cover, and wondered where they went. One night a small boat came in without "
    "a sail, and in it sat a girl who said that she had rowed from the other side of the bay, 12 kilometres away. "
)


def prompts_of(lengths: list[int], tokenizer) -> list[list[int]]:
    """Real text, each from a place of its own, so that greedy choices are clear."""
    ids = tokenizer.encode(TEXT * (max(lengths) // 80 + 4), False)
    rng = random.Random(0)
    return [ids[start: start + n] for n in lengths for start in [rng.randrange(60)]]


def ids_of(outputs) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def greedy(max_tokens: int = NEW_TOKENS) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


def as_prompts(ids: list[list[int]]) -> list[dict]:
    return [{"prompt_token_ids": i} for i in ids]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(dtype="float32", max_model_len=2048)


@pytest.fixture(scope="module")
def prompts(llm) -> list[list[int]]:
    return prompts_of([1, 2, 3, 15, 16, 17, 31, 64, 100, 129, 200, 257], llm.get_tokenizer())


@pytest.fixture(scope="module")
def alone(llm, prompts) -> list[list[int]]:
    """Each prompt by itself, nothing cached."""
    return [ids_of(llm.generate([{"prompt_token_ids": p}], greedy(), use_tqdm=False))[0] for p in prompts]


def run(prompts: list[list[int]], params: SamplingParams | None = None, **kwargs) -> tuple[LLM, list[list[int]]]:
    llm = LLM(dtype="float32", **{"max_model_len": 2048, **kwargs})
    return llm, ids_of(llm.generate(as_prompts(prompts), params or greedy(), use_tqdm=False))


def test_what_warms_up_leaves_no_trace(alone, prompts):
    llm = LLM(dtype="float32", max_model_len=2048)
    for plan in warm_up.plans(llm._core.config):
        assert len(llm._core._executor.launch(plan).result().token_ids) == len(plan.rows)
    assert ids_of(llm.generate(as_prompts(prompts[:4]), greedy(), use_tqdm=False)) == alone[:4]


def test_greedy_equals_transformers(alone, prompts, reference_model):
    assert alone == [reference_model.greedy(p, tokens) for p, tokens in zip(prompts, alone)]


def test_batched_and_cached_equal_alone(llm, alone, prompts):
    assert ids_of(llm.generate(as_prompts(prompts), greedy(), use_tqdm=False)) == alone
    before = llm.info, llm._core.scheduler.prefix_hits
    assert ids_of(llm.generate(as_prompts(prompts), greedy(), use_tqdm=False)) == alone
    assert llm._core.scheduler.prefix_hits > before[1]


def test_chunked_equals_whole(alone, prompts):
    _, chunked = run(prompts, max_num_batched_tokens=64)
    assert chunked == alone


def test_preempted_equals_undisturbed(alone, prompts):
    llm, preempted = run(prompts, num_gpu_blocks_override=24, max_model_len=None)
    assert llm._core.scheduler.num_preemptions > 0
    assert preempted == alone


def test_overlapped_equals_sequential(alone, prompts):
    _, overlapped = run(prompts, async_scheduling=True, max_num_batched_tokens=100)
    assert overlapped == alone


def test_sampled_output_depends_on_seed_alone_not_on_company(llm, prompts):
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=7, max_tokens=NEW_TOKENS, ignore_eos=True)
    together = ids_of(llm.generate(as_prompts(prompts), params, use_tqdm=False))
    again = [ids_of(llm.generate([p], params, use_tqdm=False))[0] for p in as_prompts(prompts)[:4]]
    assert together[:4] == again
    _, preempted = run(prompts, params, num_gpu_blocks_override=24, max_model_len=None, async_scheduling=True)
    assert preempted == together


def test_samples_of_one_prompt_differ_and_do_not_depend_on_how_its_blocks_are_shared(llm, prompts):
    prompt = [{"prompt_token_ids": prompts[7]}]  # 64 tokens, no repeats that would leave only one way on
    params = SamplingParams(n=3, temperature=1.0, seed=1, max_tokens=NEW_TOKENS, ignore_eos=True)
    first = llm.generate(prompt, params, use_tqdm=False)[0]
    assert [o.index for o in first.outputs] == [0, 1, 2]
    assert len({tuple(o.token_ids) for o in first.outputs}) == 3
    cached = llm.generate(prompt, params, use_tqdm=False)[0]
    uncached = LLM(dtype="float32", max_model_len=2048, enable_prefix_caching=False)
    forked = uncached.generate(prompt, params, use_tqdm=False)[0]
    for other in (cached, forked):
        assert [o.token_ids for o in other.outputs] == [o.token_ids for o in first.outputs]


def test_stop_token_ends_the_sample_and_is_named(llm, alone, prompts):
    token = alone[-1][5]
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, stop_token_ids=[token])
    output = llm.generate([{"prompt_token_ids": prompts[-1]}], params, use_tqdm=False)[0].outputs[0]
    assert output.finish_reason == "stop"
    assert output.stop_reason == token
    assert output.token_ids == alone[-1][: alone[-1].index(token) + 1]


def test_min_tokens_holds_the_stop_token_off(llm, alone, prompts):
    token = alone[-1][0]
    params = SamplingParams(temperature=0, max_tokens=8, min_tokens=4, stop_token_ids=[token])
    output = llm.generate([{"prompt_token_ids": prompts[-1]}], params, use_tqdm=False)[0].outputs[0]
    assert token not in output.token_ids[:4]


def test_logprobs_rank_and_sum(llm, prompts):
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=3, ignore_eos=True)
    output = llm.generate([{"prompt_token_ids": prompts[-1]}], params, use_tqdm=False)[0].outputs[0]
    assert output.logprobs is not None
    assert len(output.logprobs) == 4
    for token, candidates in zip(output.token_ids, output.logprobs):
        assert candidates[token].rank == 1
        assert len(candidates) == 3
        assert candidates[token].logprob == max(c.logprob for c in candidates.values())
    total = sum(c[t].logprob for t, c in zip(output.token_ids, output.logprobs))
    assert output.cumulative_logprob == pytest.approx(total)


def test_no_block_is_held_when_all_is_done(llm):
    assert llm._core.scheduler.num_running == 0
    assert llm._core.scheduler.kv_usage == 0


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("mode", ["batched", "cached", "chunked", "preempted", "overlapped"])
def test_32_prompts_of_1_to_1500_tokens_equal_transformers(long_prompts, long_expected, mode):
    kwargs = {"chunked": {"max_num_batched_tokens": 64}, "overlapped": {"async_scheduling": True},
              "preempted": {"num_gpu_blocks_override": 110, "max_model_len": None}}.get(
                  mode, {"kv_cache_memory_bytes": 2 << 30})
    # Blocks run out while samples grow, so preemption takes more of them than transformers has time for.
    num_tokens = 96 if mode == "preempted" else NEW_TOKENS
    llm, found = run(long_prompts, greedy(num_tokens), **kwargs)
    if mode == "cached":
        found = ids_of(llm.generate(as_prompts(long_prompts), greedy(), use_tqdm=False))
        assert llm._core.scheduler.prefix_hits > 10000
    if mode == "preempted":
        assert llm._core.scheduler.num_preemptions > 0
        _, undisturbed = run(long_prompts, greedy(num_tokens), kv_cache_memory_bytes=2 << 30)
        assert found == undisturbed
        found = [tokens[:NEW_TOKENS] for tokens in found]
    assert found == long_expected


@pytest.fixture(scope="module")
def long_prompts(llm) -> list[list[int]]:
    rng = random.Random(2)
    lengths = [1, 2, 16, 17, 1499, 1500, *(rng.randrange(3, 1500) for _ in range(26))]
    return prompts_of(lengths, llm.get_tokenizer())


@pytest.fixture(scope="module")
def long_expected(long_prompts, reference_model) -> list[list[int]]:
    _, ours = run(long_prompts, kv_cache_memory_bytes=2 << 30)
    expected = [reference_model.greedy(p, tokens) for p, tokens in zip(long_prompts, ours)]
    assert ours == expected
    return expected
