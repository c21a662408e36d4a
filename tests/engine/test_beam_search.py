"""Beam search against transformers' own, and against itself, whatever the chunks, the company and the split."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from quire import LLM, SamplingParams
from quire.engine.core import EngineCore
from quire.engine.errors import InvalidRequestError
from quire.engine.frontend.outputs import CompletionOutput
from quire.engine.messages import Beams, SampleSpec, Sampling, Submit
from tests.engine.models import tiny

rng = random.Random(5)
PROMPTS = [[rng.randrange(97) for _ in range(n)] for n in (1, 5, 15, 16, 17, 33, 60, 90)]
STOPS: list[list[int]] = [[], [3], [3, 8, 9, 11, 30, 31, 32, 33]]
Result = tuple[list[int], float]


def beams(width: int = 4, **values: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "use_beam_search": True, "n": width, "ignore_eos": True,
                             "max_tokens": 20, **values})


def engine(path: Path, **args: Any) -> LLM:
    return LLM(str(path), **{"skip_tokenizer_init": True, "device": "cpu", "dtype": "float32", "max_model_len": 160,
                             **args})


def run(llm: LLM, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]) -> list[list[Result]]:
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    assert llm._core.scheduler.kv_usage == 0
    return [[result(sample) for sample in output.outputs] for output in outputs]


def result(sample: CompletionOutput) -> Result:
    assert sample.cumulative_logprob is not None
    return sample.token_ids, sample.cumulative_logprob


def by_transformers(model: PreTrainedModel, prompt: list[int], params: SamplingParams) -> list[Result]:
    """Its scores times the lengths that they were divided by are sums of log-probabilities."""
    stops = params.stop_token_ids or []
    out = model.generate(  # type: ignore[operator]
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        num_beams=params.best_of or params.n, num_return_sequences=params.n, length_penalty=params.length_penalty,
        early_stopping=params.early_stopping, eos_token_id=stops or None, pad_token_id=0,
        max_new_tokens=params.max_tokens, min_new_tokens=params.min_tokens or None, output_scores=True,
        return_dict_in_generate=True)
    results = []
    for ids, score in zip(out.sequences[:, len(prompt):].tolist(), out.sequences_scores.tolist()):
        end = next((i + 1 for i, token in enumerate(ids) if token in stops), len(ids))
        results.append((ids[:end], score * end ** params.length_penalty))
    return results


def assert_same(ours: list[Result], theirs: list[Result], case: object) -> None:
    assert [ids for ids, _ in ours] == [ids for ids, _ in theirs], case
    assert [total for _, total in ours] == pytest.approx([total for _, total in theirs], rel=1e-4), case


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    path = tmp_path_factory.mktemp("llama")
    return path, tiny.write(path, "llama", num_hidden_layers=4)


@pytest.fixture(scope="module")
def llm(checkpoint: tuple[Path, PreTrainedModel]) -> Iterator[LLM]:
    made = engine(checkpoint[0])
    yield made
    made.close()


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[list[Result]]:
    return [run(llm, [prompt], beams())[0] for prompt in PROMPTS]


@pytest.mark.parametrize("share", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_sequences_and_scores_are_those_of_transformers(llm: LLM, checkpoint: tuple[Path, PreTrainedModel], share: int
                                                        ) -> None:
    """`share`: one of so many cases."""
    cases = list(itertools.product([1.0, 0.0, -1.0, 2.0], [False, True, "never"], [2, 3, 4, 7], STOPS))[::share]
    prompts = [rng.choice(PROMPTS[:6]) for _ in cases]
    params = [beams(rng.randint(1, width), best_of=width, length_penalty=penalty, early_stopping=early,
                    stop_token_ids=stops, max_tokens=rng.choice([1, 2, 9, 20]))
              for penalty, early, width, stops in cases]
    num_stopped = 0
    for case, prompt, own, ours in zip(cases, prompts, params, run(llm, prompts, params)):
        assert_same(ours, by_transformers(checkpoint[1], prompt, own), case)
        num_stopped += sum(ids[-1] in case[-1] for ids, _ in ours)
    assert num_stopped > 15 / share, "hardly any sequence met a stop token"


def test_no_beam_ends_before_min_tokens(llm: LLM, checkpoint: tuple[Path, PreTrainedModel]) -> None:
    params = beams(3, stop_token_ids=STOPS[2], min_tokens=8, max_tokens=12)
    ours = run(llm, [PROMPTS[4]], params)[0]
    assert_same(ours, by_transformers(checkpoint[1], PROMPTS[4], params), "min_tokens")
    assert all(len(ids) > 8 for ids, _ in ours)


def test_a_sequence_says_how_it_ended_and_what_its_tokens_were_worth(llm: LLM) -> None:
    params = beams(4, stop_token_ids=STOPS[2], max_tokens=6, logprobs=2)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], params, use_tqdm=False)
    reasons = set()
    for sample in (sample for output in outputs for sample in output.outputs):
        stopped = sample.token_ids[-1] in STOPS[2]
        reasons.add((sample.finish_reason, stopped))
        assert sample.stop_reason == (sample.token_ids[-1] if stopped else None)
        assert sample.logprobs is not None
        own = [place[token] for place, token in zip(sample.logprobs, sample.token_ids)]
        assert sum(each.logprob for each in own) == pytest.approx(sample.cumulative_logprob)
        assert {len(place) for place in sample.logprobs} <= {2, 3}
    assert reasons == {("stop", True), ("length", False)}


def test_vllms_length_counts_the_prompt_and_no_stop_token(llm: LLM) -> None:
    """Of the same finished sequences the shorter ones rank better: their lengths are more alike."""
    prompt, values = PROMPTS[5], {"stop_token_ids": STOPS[2], "max_tokens": 8, "early_stopping": "never"}
    ours = run(llm, [prompt], beams(6, length_counts_prompt=True, **values))[0]

    def score(found: Result) -> float:
        ids, total = found
        return total / (len(prompt) + len(ids) - (ids[-1] in STOPS[2]))

    assert [score(each) for each in ours] == sorted(map(score, ours), reverse=True)
    assert [ids for ids, _ in ours] != [ids for ids, _ in run(llm, [prompt], beams(6, **values))[0]]


def test_chunked_and_in_company_equal_alone(checkpoint: tuple[Path, PreTrainedModel], llm: LLM,
                                            alone: list[list[Result]]) -> None:
    chunked = engine(checkpoint[0], max_num_batched_tokens=24, async_scheduling=True)
    for made in (llm, chunked):
        for ours, expected in zip(run(made, PROMPTS, beams()), alone):
            assert_same(ours, expected, made)
    chunked.close()


def test_preempted_equals_undisturbed(checkpoint: tuple[Path, PreTrainedModel], alone: list[list[Result]]) -> None:
    llm = engine(checkpoint[0], num_gpu_blocks_override=17, async_scheduling=True)
    for ours, expected in zip(run(llm, PROMPTS, beams()), alone):
        assert_same(ours, expected, "preempted")
    assert llm._core.scheduler.num_preemptions > 0
    llm.close()


def test_others_get_what_they_get_without_beams_beside_them(llm: LLM) -> None:
    sampled = SamplingParams(temperature=0.9, seed=4, max_tokens=30, ignore_eos=True)
    wanted = [{"prompt_token_ids": p} for p in PROMPTS]
    without = llm.generate(wanted, sampled, use_tqdm=False)
    params = [params for _ in PROMPTS for params in (sampled, beams())]
    beside = llm.generate([p for p in wanted for _ in range(2)], params, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in beside[::2]] == [o.outputs[0].token_ids for o in without]


@pytest.mark.parametrize("split", [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}], ids=["TP 2", "PP 2"])
def test_split_equals_one_rank(split: dict[str, int], checkpoint: tuple[Path, PreTrainedModel],
                               alone: list[list[Result]]) -> None:
    llm = engine(checkpoint[0], num_gpu_blocks_override=20, **split)
    for ours, expected in zip(run(llm, PROMPTS, beams()), alone):
        assert_same(ours, expected, split)
    llm.close()


def test_windows_are_passed_beam_by_beam(tmp_path: Path) -> None:
    config = {"sliding_window": 20, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
              "use_sliding_window": True, "max_window_layers": 1}
    model = tiny.write(tmp_path, "qwen2", **config)
    llm = engine(tmp_path, num_gpu_blocks_override=64, max_num_batched_tokens=16)
    assert llm._core.config.model.kv_groups.windows[:2] == (None, 20)
    params = beams(3, max_tokens=40)
    for prompt, ours in zip(PROMPTS, run(llm, PROMPTS, params)):
        assert_same(ours, by_transformers(model, prompt, params), len(prompt))
    llm.close()


def submission(llm: LLM, prompt: list[int], first: int, *, count: int = 2, suspect: bool = False) -> Submit:
    sampling = Sampling(temperature=0.0, max_tokens=12, beams=Beams(4, 4))
    return Submit(llm.info.instance, str(first), prompt, sampling,
                  [SampleSpec(first + i, 0) for i in range(count)], suspect=suspect)


def ends_of(core: EngineCore) -> list[int]:
    """The samples that end, in order; each brings all that it has."""
    ended = []
    while core.has_work:
        for _, delta in core.step():
            assert delta.finish_reason == "length" and len(delta.token_ids) == 12
            ended.append(delta.id)
    return ended


def test_the_end_of_one_sample_from_outside_is_that_of_its_search(llm: LLM) -> None:
    core = llm._core
    for first, prompt in enumerate(PROMPTS[:3]):
        core.submit("a", submission(llm, prompt, 10 * first))
    for _ in range(5):
        core.step()
    core.abort("a", [11])
    assert core.scheduler.num_running == 8
    assert ends_of(core) == [0, 1, 20, 21]
    core.submit("b", submission(llm, PROMPTS[0], 30))
    core.step()
    assert core.abort_owner("b") == 2
    assert ends_of(core) == []
    assert core.scheduler.kv_usage == 0


def test_suspects_search_one_after_the_other(llm: LLM) -> None:
    """A search tells nothing before its end, so it is on trial until then: it begins anew with each engine."""
    core = llm._core
    for first in (0, 10):
        core.submit("a", submission(llm, PROMPTS[first // 10], first, suspect=True))
    core.submit("a", submission(llm, PROMPTS[2], 20))
    core.step()
    assert core.scheduler.num_running + core.scheduler.num_waiting == 8, "the second suspect is held"
    assert ends_of(core) == [0, 1, 20, 21, 10, 11]


def test_the_prompts_logprobs_are_told_once(checkpoint: tuple[Path, PreTrainedModel], llm: LLM) -> None:
    tight = engine(checkpoint[0], num_gpu_blocks_override=17, max_num_batched_tokens=24)
    params = [beams(4, prompt_logprobs=1) for _ in PROMPTS]
    wanted = [{"prompt_token_ids": p} for p in PROMPTS]
    told = [[out.prompt_logprobs for out in made.generate(wanted, params, use_tqdm=False)] for made in (llm, tight)]
    assert tight._core.scheduler.num_preemptions > 0
    tight.close()
    for whole, chunked, prompt in zip(*told, PROMPTS):
        assert whole is not None and chunked is not None
        assert len(whole) == len(chunked) == len(prompt)
        assert whole[0] is None and all(place is not None for place in [*whole[1:], *chunked[1:]])


def test_beams_share_the_prompts_blocks(llm: LLM) -> None:
    """Of 90 tokens of prompt and 20 of output, in blocks of 16, only the last two blocks are each beam's own."""
    core = llm._core
    most = 0
    step = core.step

    def counted(*args: Any) -> Any:
        nonlocal most
        deltas = step(*args)
        pool = core.scheduler._allocator.pool
        most = max(most, pool.num_blocks - pool.num_free)
        return deltas

    core.step = counted  # type: ignore[method-assign]
    try:
        run(llm, [PROMPTS[-1]], beams(8))
    finally:
        core.step = step  # type: ignore[method-assign]
    assert 5 < most <= 5 + 8 * 2


def test_more_beams_than_can_run_are_refused(checkpoint: tuple[Path, PreTrainedModel]) -> None:
    llm = engine(checkpoint[0], max_num_seqs=4, num_gpu_blocks_override=10)
    with pytest.raises(InvalidRequestError, match="at most 4"):
        run(llm, PROMPTS[:1], beams(5))
    with pytest.raises(InvalidRequestError, match="may need 25 blocks"):
        run(llm, PROMPTS[-1:], beams(4, max_tokens=70))
    assert len(run(llm, PROMPTS[:1], beams(4))[0]) == 4
    llm.close()


def test_a_vocabulary_of_few_tokens_has_fewer_beams(tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama", vocab_size=3)
    llm = engine(tmp_path)
    found = run(llm, [[1, 2]], beams(3, best_of=8, max_tokens=4))[0]
    every = sorted(run(llm, [[1, 2]], beams(1, best_of=30, max_tokens=4))[0])
    assert len({tuple(ids) for ids, _ in found}) == 3
    assert max(total for _, total in found) == pytest.approx(every[0][1]), "30 beams miss hardly any of 81 sequences"
    llm.close()
