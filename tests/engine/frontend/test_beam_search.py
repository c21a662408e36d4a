"""LLM.beam_search, in vLLM's words, and SmolLM2's beams against transformers'."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from quire import LLM, BeamSearchParams, SamplingParams
from quire.engine.errors import InvalidRequestError
from quire.engine.tokenizers.tokenizer import end_token_ids
from tests.conftest import ReferenceModel

BEGINNINGS = ["San Francisco is a", "The lighthouse keeper climbed the stairs", "In 1905, Albert Einstein"]
MORE = [f"{name} {rest}" for name in ("The river", "My neighbour", "A good teacher", "The engine of the car", "Water",
                                      "The first king", "A small dog", "Music", "The new law")
        for rest in ("is known for", "was never", "can often be")]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    made = LLM(dtype="float32", max_model_len=512)
    yield made
    made.close()


def test_sequences_have_the_prompt_in_front(llm: LLM) -> None:
    (first, second) = llm.beam_search(BEGINNINGS[:2], BeamSearchParams(beam_width=3, max_tokens=8))
    tokenizer = llm.get_tokenizer()
    for output, text in ((first, BEGINNINGS[0]), (second, BEGINNINGS[1])):
        prompt = tokenizer.encode(text)
        assert len({tuple(sequence.tokens) for sequence in output.sequences}) == 3
        for sequence in output.sequences:
            assert sequence.tokens[:len(prompt)] == prompt
            assert sequence.text == tokenizer.decode(sequence.tokens)
            own = [place[token].logprob for place, token in zip(sequence.logprobs, sequence.tokens[len(prompt):])]
            assert sum(own) == pytest.approx(sequence.cum_logprob)
            assert sequence.finish_reason == "length"
        sums = [sequence.cum_logprob for sequence in output.sequences]
        assert sums == sorted(sums, reverse=True), "of one length, the likeliest comes first"


def test_prompts_in_turns_give_what_they_give_at_once(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=2, max_tokens=5)
    ids = {"prompt_token_ids": [5, 6, 7]}
    together, in_turns = (llm.beam_search([*BEGINNINGS, ids], params, concurrency_limit=limit) for limit in (None, 3))
    assert [[s.tokens for s in o.sequences] for o in in_turns] == [[s.tokens for s in o.sequences] for o in together]
    assert llm.beam_search([], params) == []


def test_a_stop_token_is_hidden_unless_it_is_asked_for(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    messages = [{"role": "user", "content": "Say only: yes"}]
    prompt = tokenizer.encode(llm._chat_template(None).render(messages, add_generation_prompt=True), False)
    wanted = {"prompt_token_ids": prompt}
    (shown, hidden) = (llm.beam_search(
        wanted, BeamSearchParams(3, 40, include_stop_str_in_output=included, skip_special_tokens=False))[0].sequences
        for included in (True, False))
    ended = [(a, b) for a, b in zip(shown, hidden) if a.finish_reason == "stop"]
    assert ended, "no beam came to an end"
    for with_stop, without in ended:
        assert with_stop.tokens == without.tokens
        assert with_stop.text == f"{without.text}{tokenizer.decode(with_stop.tokens[-1:], False)}"


def test_what_is_no_beam_search_is_refused(llm: LLM) -> None:
    for params, said in ((BeamSearchParams(2, 4, temperature=0.5), "temperature must be 0"),
                         (BeamSearchParams(0, 4), "^beam_width must be at least 1, got 0"),
                         (SamplingParams(), "must be BeamSearchParams, got SamplingParams")):
        with pytest.raises(InvalidRequestError, match=said):
            llm.beam_search(BEGINNINGS, params)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match=r"got BeamSearchParams; LLM\.beam_search"):
        llm.generate(BEGINNINGS, BeamSearchParams(2, 4), use_tqdm=False)  # type: ignore[arg-type]


def assert_as_transformers(llm: LLM, reference: ReferenceModel, texts: list[str], max_tokens: int) -> None:
    ends = sorted(end_token_ids(llm.model_config, llm.get_tokenizer()))
    tokenizer = llm.get_tokenizer()
    prompts = [tokenizer.encode(text) for text in texts]
    params = SamplingParams(n=4, temperature=0, use_beam_search=True, max_tokens=max_tokens, early_stopping=True)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    for ids, output in zip(prompts, outputs):
        found = reference.model.generate(  # type: ignore[operator]
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), num_beams=4,
            num_return_sequences=4, max_new_tokens=max_tokens, do_sample=False, early_stopping=True,
            eos_token_id=ends, pad_token_id=0, output_scores=True, return_dict_in_generate=True)
        for theirs, score, ours in zip(found.sequences[:, len(ids):].tolist(), found.sequences_scores.tolist(),
                                       output.outputs):
            assert theirs[:len(ours.token_ids)] == ours.token_ids
            assert ours.cumulative_logprob == pytest.approx(score * len(ours.token_ids), rel=1e-3)


def test_a_real_models_beams_are_those_of_transformers(llm: LLM, reference_model: ReferenceModel) -> None:
    assert_as_transformers(llm, reference_model, BEGINNINGS, 8)


@pytest.mark.slow
def test_many_prompts_beams_are_those_of_transformers(llm: LLM, reference_model: ReferenceModel) -> None:
    assert_as_transformers(llm, reference_model, BEGINNINGS + MORE, 16)
