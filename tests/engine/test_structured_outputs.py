"""What follows a grammar: the same text however it is computed, with every other wish, and resumed at any token."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as replace_struct

from quire import LLM, SamplingParams, StructuredOutputsParams
from quire.engine.errors import InvalidRequestError
from quire.engine.frontend.submission import numbers
from quire.engine.messages import SampleSpec, Sampling, Submit
from quire.engine.structured_outputs import GuidedDecodingParams
from tests.engine.grammar.random_model import write_random
from tests.engine.grammar.schemas import strict

PERSON = strict(name={"type": "string", "maxLength": 8}, age={"type": "integer", "minimum": 0, "maximum": 120},
                tags={"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3})
FORMS: list[dict[str, Any] | None] = [
    {"json": PERSON}, {"regex": "(ab|c){1,30}!"}, None, {"choice": ["red", "blue\n", '"']}, {"json_object": True},
    {"grammar": 'root ::= "x" [0-9]+ ","'}]
PROMPTS = ["a", "name: ", "The first of all, " * 4, "b" * 30, "age", "{}"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[LLM]:
    llm = LLM(str(path), max_model_len=256)
    yield llm
    llm.close()


def wishes() -> list[SamplingParams]:
    return [SamplingParams(temperature=1.0, seed=i, max_tokens=60, frequency_penalty=0.5, n=1 + (i == 1),
                           structured_outputs=None if form is None else StructuredOutputsParams(**form))
            for i, form in enumerate(FORMS)]


def tokens(llm: LLM) -> list[list[int]]:
    outputs = llm.generate(PROMPTS, wishes(), use_tqdm=False)
    return [sample.token_ids for output in outputs for sample in output.outputs]


@pytest.fixture(scope="module")
def expected(llm: LLM) -> list[list[int]]:
    return [sample.token_ids for prompt, wish in zip(PROMPTS, wishes())
            for sample in llm.generate([prompt], [wish], use_tqdm=False)[0].outputs]


@pytest.mark.parametrize("args", [
    {}, {"async_scheduling": True}, {"max_num_batched_tokens": 8, "max_num_seqs": 4},
    {"max_num_seqs": 4, "num_gpu_blocks_override": 9, "max_num_batched_tokens": 32, "max_model_len": 140},
    {"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}], ids=str)
def test_the_text_is_the_same_however_it_is_computed(args: dict[str, Any], path: Path,
                                                     expected: list[list[int]]) -> None:
    llm = LLM(str(path), **{"max_model_len": 256, **args})
    assert tokens(llm) == expected
    assert llm._core.scheduler.num_preemptions > 0 or "num_gpu_blocks_override" not in args
    llm.close()


def test_a_sample_goes_on_as_if_nothing_had_happened_after_any_of_its_tokens(llm: LLM) -> None:
    """As a new engine does with the requests of one that died."""
    wish = replace(wishes()[0], max_tokens=120, min_tokens=5)
    whole = llm.generate(["a"], wish, use_tqdm=False)[0].outputs[0]
    assert whole.finish_reason == "stop"
    ids, core = llm.get_tokenizer().encode("a"), llm._core
    assert wish.structured_outputs is not None
    sampling = numbers(wish, len(ids), max_model_len=256, max_logprobs=5, vocab_size=llm.info.vocab_size,
                       eos_token_ids=(llm.get_tokenizer().eos_token_id or 0,), clamp=True, grammar=llm._grammar(wish))
    for known in [*range(9), *range(9, len(whole.token_ids), 4)]:
        core.submit("test", Submit(llm.info.instance, "r", ids, sampling,
                                   [SampleSpec(0, 0, list(whole.token_ids[:known]))]))
        found = list(whole.token_ids[:known])
        while core.has_work:
            found += [token for _, delta in core.step() for token in delta.token_ids]
        assert found == whole.token_ids, known


@settings(max_examples=25, deadline=None)
@given(st.fixed_dictionaries({
    "temperature": st.sampled_from([0.0, 0.7, 1.5]), "top_p": st.sampled_from([0.3, 1.0]), "n": st.integers(1, 2),
    "repetition_penalty": st.sampled_from([0.5, 1.0, 2.0]), "presence_penalty": st.sampled_from([-1.0, 0.0, 1.0]),
    "logprobs": st.sampled_from([None, 0, 2]), "min_tokens": st.integers(0, 12), "max_tokens": st.integers(12, 45),
    "seed": st.integers(0, 99), "ignore_eos": st.booleans(), "stop": st.sampled_from([None, ["b"], ["}"]]),
    "bad_words": st.sampled_from([None, ["c"]]), "prompt_logprobs": st.sampled_from([None, 1])}))
def test_with_every_other_wish_the_text_is_of_the_form(llm: LLM, wish: dict[str, Any]) -> None:
    params = [SamplingParams(**wish, structured_outputs=StructuredOutputsParams(regex="[a-c]{3,40}")),
              SamplingParams(**wish)]
    formed, free = llm.generate(["x", "y"], params, use_tqdm=False)
    for sample in formed.outputs:
        assert sample.finish_reason in ("stop", "length")
        assert re.fullmatch("[a-c]{0,40}", sample.text), sample.text
        if sample.finish_reason == "stop" and sample.stop_reason is None:
            assert len(sample.text) >= 3
            assert len(sample.token_ids) >= wish["min_tokens"] or len(sample.text) == 40
        assert wish["logprobs"] is None or len(sample.logprobs or []) == len(sample.token_ids)
        assert not (wish["bad_words"] and "c" in sample.text[1:] and " " in sample.text)
    alone = llm.generate(["y"], params[1], use_tqdm=False)[0]
    assert [sample.token_ids for sample in alone.outputs] == [sample.token_ids for sample in free.outputs]


def test_a_text_that_is_complete_ends_whatever_min_tokens_and_ignore_eos_say(llm: LLM) -> None:
    wish = SamplingParams(min_tokens=30, max_tokens=40, ignore_eos=True, structured_outputs={"regex": "ab"})
    output = llm.generate(["x"], wish, use_tqdm=False)[0].outputs[0]
    assert (output.text, output.finish_reason) == ("ab", "stop")


def test_what_contradicts_the_grammar_ends_that_sample_with_an_error(llm: LLM) -> None:
    token = llm.get_tokenizer().encode("z")[0]
    wish = SamplingParams(allowed_token_ids=[token], structured_outputs={"regex": "ab"})
    contradictory, other = llm.generate(["x", "x"], [wish, SamplingParams(temperature=0)], use_tqdm=False)
    assert contradictory.outputs[0].finish_reason == "error"
    assert other.outputs[0].finish_reason != "error"


@pytest.mark.parametrize("grammar", ["no grammar at all", "start: /a{/", "\ud800"])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_grammar_that_cannot_be_made_ends_its_sample_alone(grammar: str, ahead: bool, path: Path) -> None:
    """As where the front end knows another version of llguidance, or the machine has less memory for it."""
    llm = LLM(str(path), max_model_len=256, async_scheduling=ahead)
    core, free = llm._core, Sampling(temperature=0.0, max_tokens=6)
    for id, sampling in enumerate((free, replace_struct(free, grammar=grammar), free)):
        core.submit("test", Submit(llm.info.instance, str(id), [5, 6, 7], sampling, [SampleSpec(id, 0)]))
    ends, found = {}, dict[int, list[int]]()
    while core.has_work:
        for _, delta in core.step():
            found.setdefault(delta.id, []).extend(delta.token_ids)
            ends[delta.id] = delta.finish_reason
    assert ends == {0: "length", 1: "error", 2: "length"}
    assert (len(found[0]), found[1], found[2]) == (6, [], found[0])
    llm.close()


@pytest.mark.parametrize("form", [
    {"grammar": "\n".join(["start: r0", *(f"r{i}: r{i + 1}" for i in range(9000)), 'r9000: "a"'])},
    {"grammar": "\n".join(["start: T0", *(f'T{i}: "b"? T{i + 1}' for i in range(9000)), 'T9000: "a"'])},
    {"json": {"$ref": "#/$defs/a0", "$defs": {**{f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(5000)},
                                              "a5000": {"const": "a"}}}}], ids=["rules", "terminals", "references"])
def test_a_long_chain_of_rules_ends_no_process(form: dict[str, Any], llm: LLM) -> None:
    """On a stack of 8 MiB it did: the server's worker, with all its streams."""
    wish = SamplingParams(max_tokens=2, structured_outputs=form)
    assert llm.generate(["x"], wish, use_tqdm=False)[0].outputs[0].finish_reason in ("stop", "length")


def test_structural_tags_bind_what_they_begin(llm: LLM) -> None:
    schema = strict(x={"type": "integer", "minimum": 1, "maximum": 3})
    older = {"structures": [{"begin": "<f=a>", "schema": schema, "end": "</f>"}], "triggers": ["<f="]}
    newer = {"type": "structural_tag", "format": {"type": "sequence", "elements": [
        {"type": "const_string", "value": "hi "},
        {"type": "or", "elements": [{"type": "regex", "pattern": "[0-9]/"}, {"type": "const_string", "value": "/"}]},
        {"type": "tag", "begin": "<f=a>", "content": {"type": "json_schema", "json_schema": schema}, "end": "</f>"}]}}
    special = {"format": {"type": "triggered_tags", "triggers": ["<call>"], "at_least_one": True,
                          "stop_after_first": True, "tags": [{"begin": "<call>!", "content": {"type": "const_string",
                                                                                            "value": "yes"}}]}}
    optional = {"format": {"type": "sequence", "elements": [
        {"type": "some_of", "separator": ", ", "optional": [True, False, True], "elements": [
            {"type": "const_string", "value": value} for value in "abc"]},
        {"type": "tag", "begin": "<", "content": {"type": "any_text", "pattern": "[x-z]{2}"}, "end": ">"},
        {"type": "tag", "begin": "(", "content": {"type": "any_text", "max_tokens": 3}, "end": "<call>"}]}}
    trigger = dict.fromkeys(llm.get_tokenizer().encode("<f="), 90.0)
    call = llm.get_tokenizer().encode("<call>")[0]
    for tags, bias, form in (
            (older, trigger, r'(?s).*<f=a>\{\s*"x"\s*:\s*[123]\s*\}</f>.*'),
            (json.dumps(newer), {}, r'hi (\d/|/)<f=a>\{\s*"x"\s*:\s*[123]\s*\}</f>'),
            (optional, {}, r"(?s)(a, )?b(, c)?<[x-z]{2}>\(.*"), (special, {call: 9.0}, "(?s).*!yes")):
        wish = SamplingParams(seed=3, max_tokens=150, logit_bias=bias,
                              structured_outputs=StructuredOutputsParams(structural_tag=tags))
        output = llm.generate(["x"], wish, use_tqdm=False)[0].outputs[0]
        assert re.fullmatch(form, output.text), (output.text, output.finish_reason)


@pytest.mark.parametrize(("form", "says"), [
    ({}, "must have exactly one of json, regex, choice, grammar, json_object, structural_tag, got none of them"),
    ({"json_object": False}, "asks for nothing"), ({"json": {}, "regex": "a"}, "got json, regex"),
    ({"json": "{"}, "json is no JSON"), ({"json": 5}, "json must be a JSON object, got 5"), ({"choice": []}, "empty"),
    ({"choice": ["a", ""]}, "not empty"), ({"regex": "a\0"}, "NUL"), ({"grammar": "  "}, "grammar is empty"),
    ({"regex": "a" * 300_000}, "at most 262144 characters, got 300000"), ({"regex": 3}, "regex must be text"),
    ({"json": {"items": [[[[]]]] , "a": json.loads("[" * 60 + "]" * 60)}}, "more than 40 levels"),
    ({"regex": "a{"}, "unclosed counted repetition"), ({"regex": "(?=a)"}, "look-around"),
    ({"regex": r"(\d{3}"}, r"^structured_outputs: regex: unclosed group\.$"),
    ({"regex": r"\bfoo\b"}, r"regex: \\b and \\B are not supported\.$"),
    ({"json": strict(a={"oneOf": [{"type": "integer"}, {"type": "number"}]})},
     r"a oneOf whose branches overlap, or may, is not supported; write anyOf \(at #/properties/a of the schema\)\.$"),
    ({"json": strict(a={"type": "array", "items": {"type": "strin"}})},
     r"Invalid type: strin \(at #/properties/a/items of the schema\)"),
    ({"json": {"anyOf": [{}, {"type": "array", "uniqueItems": True}]}}, r"uniqueItems.* \(at #/anyOf/1 of"),
    ({"json": {"$ref": "#/$defs/x"}}, "'/.defs/x' does not exist"), ({"json": False}, "allows no value"),
    ({"grammar": "root ::= ("}, r"Expected '\)' at line 1"), ({"grammar": "start: x"}, "x"),
    ({"grammar": "hello"}, "grammar has neither Lark's `start: ...` nor GBNF's `root ::= ...`"),
    ({"structural_tag": {"format": {"type": "b"}}}, "format.type must be one of const_string, json_schema"),
    ({"structural_tag": {"format": {"type": "or", "elements": [{"type": "regex"}]}}},
     r"format.elements\[0\].pattern must be a regular expression"),
    ({"json": {"type": "object", "whatever": {}}, "guided": 1}, "has no 'guided'; it has json, regex"),
    ({"json": {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}}, "Unimplemented keys"),
    ({"structural_tag": {"format": {"type": "json_schema", "json_schema": False}}}, "must be a JSON schema: an object"),
    ({"structural_tag": {"triggers": ["<f"], "structures": [{"begin": "<f>", "end": ""}, 5]}}, "must be an object"),
    ({"structural_tag": {"format": {"type": "some_of", "elements": [{"type": "any_text"}], "optional": []}}},
     "format.optional must be a list of as many as there are elements"),
    ({"structural_tag": {"triggers": ["<f"], "structures": [
        {"begin": "<f=a>", "schema": {}, "end": ""},
        {"begin": "<f=b>", "schema": strict(a={"type": "strin"}), "end": ""}]}},
     r"^structured_outputs: Invalid type: strin \(at #/properties/a of the schema behind '<f=b>'\)\.$"),
    ({"structural_tag": {"format": {"type": "or", "elements": [{"type": "any_text"}, {
        "type": "tag", "begin": "a", "end": "b", "content": {"type": "any_text", "pattern": "("}}]}}},
     r"^structured_outputs: regex: unclosed group \(behind 'a'\)\.$"),
    ({"structural_tag": {"format": {"type": "tag", "begin": "a", "end": "b", "content": {
        "type": "any_text", "max_tokens": -1}}}}, "format.content.max_tokens must be an integer from 0 to 1000000"),
])
def test_what_cannot_be_followed_is_refused_with_its_reason(form: dict[str, Any], says: str, llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match=says) as caught:
        llm.generate(["x"], SamplingParams(structured_outputs=form), use_tqdm=False)
    assert caught.value.param == "structured_outputs"
    assert "\n" not in str(caught.value)


PATTERNS = {"allOf": [{"type": "string", "pattern": "a" * i + ".*"} for i in range(1, 60)]}
PROPERTIES = [f"{'a' * i}.*" for i in range(1, 60)]


@pytest.mark.parametrize(("form", "says"), [
    ({"json": PATTERNS}, "59 patterns and formats in a schema that combines parts 58 times"),
    ({"json": {"allOf": [{"properties": {"a": {"pattern": each}}} for each in PROPERTIES]}}, "59 patterns and formats"),
    ({"grammar": f"start: %json {json.dumps(PATTERNS)}"}, "59 patterns and formats"),
    ({"structural_tag": {"format": {"type": "json_schema", "json_schema": PATTERNS}}}, "59 patterns and formats"),
    ({"json": {"type": "integer", "multipleOf": 999983}}, "multipleOf is too costly"),
    ({"json": {"allOf": [{"type": "number", "multipleOf": each / 10} for each in (97, 101, 103)]}}, "too costly"),
    ({"grammar": "start: T // &\nT: /x&/ & " + " & ".join(f"/{each}/" for each in PROPERTIES)}, "intersections .* not"),
    ({"grammar": "root ::= " + " ".join(["root"] * 20_000)}, "GBNF may have at most 32768 characters, got 100008"),
], ids=str)
def test_what_would_take_minutes_is_refused_at_once(form: dict[str, Any], says: str, llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        llm.generate(["x"], SamplingParams(structured_outputs=form), use_tqdm=False)


@pytest.mark.parametrize("form", [
    {"grammar": 'start: "a&b" | /c&d/ // x & y'}, {"json": {"type": "number", "multipleOf": 0.25, "maximum": 1}},
    {"json": {"type": "integer", "multipleOf": 2000, "minimum": 2000, "maximum": 2000}},
    {"json": {"anyOf": [{"type": "string", "pattern": each} for each in PROPERTIES[:12]]}},
    {"json": {"type": "array", "prefixItems": [{"type": "string", "pattern": each} for each in PROPERTIES]}}], ids=str)
def test_what_only_looks_costly_is_followed(form: dict[str, Any], llm: LLM) -> None:
    wish = SamplingParams(max_tokens=2, structured_outputs=form)
    assert llm.generate(["x"], wish, use_tqdm=False)[0].outputs[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize("text", ["a\x7fb", "\x00\x01\u2028", '"\\/', "\\u007f"])
def test_any_text_may_be_chosen(text: str, llm: LLM) -> None:
    wish = SamplingParams(max_tokens=20, structured_outputs={"choice": [text]})
    tag = SamplingParams(max_tokens=20, structured_outputs={
        "structural_tag": {"format": {"type": "const_string", "value": text}}})
    assert [each.outputs[0].text for each in llm.generate(["x", "x"], [wish, tag], use_tqdm=False)] == [text, text]


def test_a_model_that_never_ends_has_no_forms(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    for name in ("config.json", "generation_config.json"):
        stated = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps({**stated, "eos_token_id": None}))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    llm = LLM(str(tmp_path), max_model_len=64)
    with pytest.raises(InvalidRequestError, match="need a token that ends a text"):
        llm.generate(["x"], SamplingParams(structured_outputs={"regex": "a"}), use_tqdm=False)
    assert len(llm.generate(["x"], SamplingParams(max_tokens=3), use_tqdm=False)[0].outputs[0].token_ids) == 3
    llm.close()


def test_older_names_ask_for_the_same(llm: LLM) -> None:
    for wish in (SamplingParams(guided_decoding=GuidedDecodingParams(choice=["zz"])),
                 SamplingParams(guided_decoding={"choice": ["zz"]})):
        assert llm.generate(["x"], wish, use_tqdm=False)[0].outputs[0].text == "zz"
    with pytest.raises(InvalidRequestError, match="give one of them"):
        SamplingParams(guided_decoding={"choice": ["zz"]}, structured_outputs={"choice": ["zz"]})


def test_without_a_tokenizer_there_is_no_form(path: Path) -> None:
    llm = LLM(str(path), skip_tokenizer_init=True, max_model_len=64)
    with pytest.raises(InvalidRequestError, match="need a tokenizer"):
        llm.generate([{"prompt_token_ids": [1]}], SamplingParams(structured_outputs={"regex": "a"}), use_tqdm=False)
    llm.close()
