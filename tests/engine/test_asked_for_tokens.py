"""logit_bias, allowed_token_ids and bad_words through the engine: they hold, whatever the batch, and trouble nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quire import LLM, SamplingParams
from quire.engine.errors import NOTHING_LEFT_TO_DRAW, InvalidRequestError
from tests.engine.models import tiny

PROMPTS = [[(7 * i * i + j) % 96 for i in range(5 + 9 * j)] for j in range(6)]
PLAIN = {"temperature": 1.0, "max_tokens": 20, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    tiny.write(path, "llama")
    return path


def outputs(model: Path, params: list[SamplingParams], **args: Any) -> list[Any]:
    llm = LLM(str(model), skip_tokenizer_init=True, device="cpu", dtype="float32", cpu_threads=1, max_model_len=128,
              **args)
    try:
        done = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS[:len(params)]], params, use_tqdm=False)
        if "num_gpu_blocks_override" in args:
            assert llm._core.scheduler.num_preemptions > 0
        return [sample for output in done for sample in output.outputs]
    finally:
        llm.close()


@pytest.fixture(scope="module")
def plain(model: Path) -> list[list[int]]:
    return [o.token_ids for o in outputs(model, [SamplingParams(seed=i, **PLAIN) for i in range(6)])]


@pytest.mark.parametrize("args", [{}, {"async_scheduling": True}, {"num_gpu_blocks_override": 9, "max_num_seqs": 4}],
                         ids=["plain", "overlapped", "preempted"])
def test_rows_that_ask_get_it_and_others_what_they_get_without_them(model: Path, plain: list[list[int]],
                                                                    args: dict[str, Any]) -> None:
    params = [SamplingParams(seed=i, **PLAIN) for i in range(6)]
    params[1] = SamplingParams(seed=1, allowed_token_ids=[4, 8, 15], **PLAIN)
    params[2] = SamplingParams(seed=2, logit_bias={42: 100}, logprobs=2, **PLAIN)
    params[4] = SamplingParams(seed=4, allowed_token_ids=[7], logit_bias={7: -100}, n=2, **PLAIN)
    found = outputs(model, params, **args)
    assert [found[i].token_ids for i in (0, 3)] == [plain[i] for i in (0, 3)]
    assert found[6].token_ids == plain[5]
    assert set(found[1].token_ids) <= {4, 8, 15}
    assert set(found[2].token_ids) == {42}
    assert all(place[42].logprob < -0.01 for place in found[2].logprobs), "told of the logits without the bias"
    assert [sample.token_ids for sample in found[4:6]] == [[7] * 20] * 2


def test_a_sequence_that_is_barred_is_not_completed(model: Path) -> None:
    greedy = {"temperature": 0, "max_tokens": 20, "ignore_eos": True}
    [free] = outputs(model, [SamplingParams(**greedy)])
    ids = free.token_ids
    llm = LLM(str(model), skip_tokenizer_init=True, device="cpu", dtype="float32", cpu_threads=1, max_model_len=128)
    barred = [ids[3:6], ids[9:10]]
    llm._tokenizer = Spelling(barred)  # type: ignore[assignment]
    params = SamplingParams(bad_words=["one", "two"], detokenize=False, **greedy)
    got = llm.generate([{"prompt_token_ids": PROMPTS[0]}], params, use_tqdm=False)[0].outputs[0].token_ids
    llm.close()
    assert got[:5] == ids[:5]
    assert got[5] != ids[5]
    assert ids[9] not in got or ids[9] in ids[:5]
    assert not any(got[i:i + 3] == barred[0] for i in range(len(got)))


class Spelling:
    """A tokenizer as far as bad words need one: each text is the next of these sequences, with a space and without."""

    eos_token_id = None

    def __init__(self, sequences: list[list[int]]) -> None:
        self._sequences = sequences

    def encode_batch(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        assert texts == ["one", " one", "two", " two"] and not add_special_tokens
        return [ids for ids in self._sequences for _ in range(2)]


@pytest.mark.parametrize("args", [{}, {"async_scheduling": True}], ids=["plain", "overlapped"])
def test_a_sample_with_nothing_left_to_draw_ends_and_says_so(model: Path, plain: list[list[int]],
                                                             args: dict[str, Any]) -> None:
    params = [SamplingParams(seed=i, **PLAIN) for i in range(3)]
    # Its only token is a stop token that min_tokens holds back.
    params[1] = SamplingParams(allowed_token_ids=[5], stop_token_ids=[5], min_tokens=2, **PLAIN)
    found = outputs(model, params, **args)
    assert (found[1].finish_reason, found[1].stop_reason, found[1].token_ids) == ("error", NOTHING_LEFT_TO_DRAW, [])
    assert [found[i].token_ids for i in (0, 2)] == [plain[i] for i in (0, 2)]


@pytest.mark.parametrize(("field", "value"), [("allowed_token_ids", [1000]), ("logit_bias", {-1: 1.0}),
                                              ("bad_words", ["x"])])
def test_tokens_that_the_model_has_not_are_refused(model: Path, field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{field}") as caught:
        outputs(model, [SamplingParams(**{field: value, "detokenize": False})])
    assert caught.value.param == field
