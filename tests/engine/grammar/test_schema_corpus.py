"""Of more than 300 schemas, each is refused with its reason or followed: what an engine writes by it is valid JSON of
that schema, as an independent validator finds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import jsonschema
import pytest
from jsonschema.validators import validator_for

from quire import LLM, SamplingParams, StructuredOutputsParams
from quire.engine.errors import InvalidRequestError
from quire.engine.grammar.check import GrammarCheck, grammar_check
from tests.engine.grammar.random_model import write_random
from tests.engine.grammar.schemas import Schema, schemas

# What no grammar can follow, or none of llguidance's does.
REFUSED = {
    "unique", "contains", "bad-counts", "never", "names", "dependent", "not", "if", "oneOf-overlapping", "endless",
    "missing-ref", "remote-ref", "format-unheard-of", "format-iri", "format-regex",
    "format-json-pointer", "pattern-11", "pattern-15", "integer-8", "number-8", "allOf-2",
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """Random weights: what it writes is what grammars leave it."""
    path = tmp_path_factory.mktemp("random")
    llm = LLM(str(write_random(path)), max_num_seqs=128)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def check(llm: LLM) -> GrammarCheck:
    return grammar_check(llm.model_config, llm.get_tokenizer(), llm.info.vocab_size)


def test_each_is_taken_or_refused_with_a_reason(check: GrammarCheck) -> None:
    refused = {}
    for name, schema in schemas().items():
        try:
            check.grammar(StructuredOutputsParams(json=schema))
        except InvalidRequestError as error:
            refused[name] = error.message
    assert len(schemas()) >= 300
    assert set(refused) == REFUSED, (set(refused) - REFUSED, REFUSED - set(refused))
    assert all(len(message) > 25 for message in refused.values()), refused


def test_what_is_written_is_valid(llm: LLM) -> None:
    """Twice: in the shortest way, and a third of them by chance."""
    tokenizer = llm.get_tokenizer()
    taken = [(name, schema) for name, schema in schemas().items() if name not in REFUSED]
    short = (b'"', b'"}', b"}", b"]", b'"]', b"}}", b"]}", b",", b":")
    closing = [token for token in range(tokenizer.vocab_size) if tokenizer.token_bytes(token) in short]
    assert tokenizer.eos_token_id is not None
    by_chance = {"temperature": 1.0, "seed": 3, "top_p": 0.98}
    for wanted, bias, options in ((taken, 50.0, {"temperature": 0.0}), (taken[::3], 6.0, by_chance)):
        params = [SamplingParams(max_tokens=300, structured_outputs=StructuredOutputsParams(json=schema),
                                 logit_bias=dict.fromkeys(closing, bias) | {tokenizer.eos_token_id: 2 * bias},
                                 **options) for _, schema in wanted]
        outputs = llm.generate(["x"] * len(wanted), params, use_tqdm=False)
        ended = 0
        for (name, schema), output in zip(wanted, outputs):
            text, reason = output.outputs[0].text, output.outputs[0].finish_reason
            assert reason in ("stop", "length"), (name, reason)
            if reason == "stop":
                ended += 1
                require_valid(name, schema, text)
        assert ended >= 0.9 * len(wanted), (ended, [name for (name, _), output in zip(wanted, outputs)
                                                   if output.outputs[0].finish_reason != "stop"])


def require_valid(name: str, schema: Schema | bool, text: str) -> None:
    try:
        kind = validator_for(schema, default=jsonschema.Draft202012Validator)
        kind(schema, format_checker=kind.FORMAT_CHECKER).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError) as error:
        raise AssertionError(f"{name}: {text!r}") from error
