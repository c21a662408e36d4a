"""The steps that a GPU's kernels are compiled for before the first real one, carried out here for real."""

from __future__ import annotations

from engine import LLM, SamplingParams


def test_it_takes_one_layers_cache_and_leaves_no_trace() -> None:
    llm = LLM(dtype="float32", max_model_len=512, enable_prefix_caching=False, enforce_eager=True)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)

    def tokens() -> list[int]:
        return llm.generate(["The lighthouse keeper"], params, use_tqdm=False)[0].outputs[0].token_ids

    before = tokens()
    executor = llm._core._executor
    executor._runner._rehearse()
    assert executor._runner.kv_caches == []
    executor._runner.allocate(executor.num_blocks)
    assert tokens() == before
