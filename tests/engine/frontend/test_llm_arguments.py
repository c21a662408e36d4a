"""What LLM.generate takes as prompts and parameters, and what it says of the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from engine import LLM, SamplingParams
from engine.errors import InvalidRequestError
from tests.engine.models import tiny

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


@pytest.mark.parametrize("prompts", [5, None, 1.5])
def test_what_is_no_prompt_is_named(llm: LLM, prompts: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"prompts must be .* got {type(prompts).__name__}"):
        llm.generate(prompts, PARAMS)


@pytest.mark.parametrize("params", [{"max_tokens": 2}, [{"max_tokens": 2}], 5])
def test_what_are_no_parameters_is_named(llm: LLM, params: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"sampling_params must be .* got {type(params).__name__}"):
        llm.generate([[1, 2]], params)
