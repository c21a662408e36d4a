"""prompt_logprobs are transformers', however the prompt is computed, in logits of one slice at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from quire import LLM, SamplingParams
from quire.engine.errors import InvalidRequestError
from quire.engine.execution.told_prompts import SLICE
from tests.engine.models import tiny
from tests.engine.models.families import write

LENGTHS = (1, 2, 17, 75, 75)
TEXT = [(31 * i + i * i) % 96 for i in range(75)]
PROMPTS = [TEXT[:n] for n in LENGTHS]
K = 3


@pytest.fixture(scope="module", params=["llama", "gemma3", "opt-350m"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp(request.param)
    return path, write(path, request.param)


def outputs(path: Path, params: list[SamplingParams], **args: Any) -> tuple[LLM, list[Any]]:
    llm = LLM(str(path), skip_tokenizer_init=True, device="cpu", dtype="float32", cpu_threads=1, max_model_len=128,
              **args)
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    return llm, llm.generate(prompts, params, use_tqdm=False)


@pytest.mark.parametrize("args", [
    {}, {"max_num_batched_tokens": 16}, {"max_num_batched_tokens": 1, "max_num_seqs": 2}, {"async_scheduling": True},
    {"max_num_batched_tokens": 20, "max_num_seqs": 4, "num_gpu_blocks_override": 9},
    {"model_impl": "transformers", "max_num_batched_tokens": 16}], ids=str)
def test_they_are_transformers_however_the_prompt_is_computed(model: tuple[Path, Any], args: dict[str, Any]) -> None:
    path, reference = model
    if path.name.startswith("gemma3") and "num_gpu_blocks_override" in args:
        args = {**args, "num_gpu_blocks_override": 25}  # of three groups
    params = [SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, prompt_logprobs=K if i != 2 else None)
              for i in range(len(PROMPTS))]
    llm, found = outputs(path, params, **args)
    assert llm._core.scheduler.num_preemptions > 0 or "num_gpu_blocks_override" not in args
    again = llm.generate([{"prompt_token_ids": TEXT}], params[3], use_tqdm=False)[0]
    llm.close()
    assert found[2].prompt_logprobs is None
    for prompt, output in [*zip(PROMPTS, found), (TEXT, again)]:
        expected = tiny.logits(reference, prompt).log_softmax(-1)
        if output.prompt_logprobs is None:
            continue
        assert len(output.prompt_logprobs) == len(prompt)
        assert output.prompt_logprobs[0] is None
        for place, (token, told) in enumerate(zip(prompt[1:], output.prompt_logprobs[1:])):
            right = expected[place]
            assert next(iter(told)) == token
            assert len(told) in (K, K + 1)
            for id, logprob in told.items():
                assert logprob.logprob == pytest.approx(float(right[id]), abs=1e-3)
            assert told[token].rank == pytest.approx(int((right > right[token]).sum()) + 1, abs=1)
            found_best = sorted((each.logprob for each in told.values()), reverse=True)[:K]
            assert found_best == pytest.approx(right.topk(K).values.tolist(), abs=1e-3)
    assert again.num_cached_tokens == 0, "what is read from the cache tells nothing"


def test_samples_of_one_prompt_share_what_is_told(model: tuple[Path, Any]) -> None:
    path, _ = model
    params = [SamplingParams(seed=1, n=3 if i == 3 else 1, max_tokens=4, prompt_logprobs=0) for i in range(5)]
    llm, found = outputs(path, params)
    llm.close()
    assert len(found[3].outputs) == 3
    shared, alone = ([next(iter(told.values())).logprob for told in found[i].prompt_logprobs[1:]] for i in (3, 4))
    assert shared == pytest.approx(alone)


def test_no_more_logits_than_a_slice_are_made_at_once(model: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = model
    llm = LLM(str(path), skip_tokenizer_init=True, device="cpu", dtype="float32", max_model_len=256)
    runner, rows = llm._core._executor._runner, []
    logits = runner.model.logits

    def noting(hidden: torch.Tensor) -> torch.Tensor:
        rows.append(hidden.shape[0])
        return logits(hidden)

    monkeypatch.setattr(runner.model, "logits", noting)
    llm.generate([{"prompt_token_ids": TEXT * 3}], SamplingParams(max_tokens=2, prompt_logprobs=5), use_tqdm=False)
    llm.close()
    assert max(rows) <= SLICE
    assert sum(rows) == 3 * len(TEXT) - 1 + 2


def test_more_than_may_be_asked_for_is_refused(model: tuple[Path, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="Requested prompt logprobs of 21, which is greater") as caught:
        outputs(model[0], [SamplingParams(prompt_logprobs=21)] * len(PROMPTS))
    assert caught.value.param == "prompt_logprobs"
