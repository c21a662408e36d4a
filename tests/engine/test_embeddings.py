"""Vectors of prompts are transformers' last hidden states, pooled: whatever else is in the batch, and however a prompt
is computed."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, processors
from transformers import AutoModel

from quire import LLM, AsyncEngineArgs, AsyncLLMEngine, PoolingParams, SamplingParams
from quire.engine.errors import ConfigError, InvalidRequestError
from quire.engine.execution import warm_up
from quire.engine.weights.pooling_facts import gguf_pooling
from tests.engine.models import tiny
from tests.engine.models.families import CASES, write
from tests.engine.tokenizers.byte_vocabulary import trained

rng = random.Random(5)
LENGTHS = (1, 2, 16, 17, 33, 75, 75, 128)
PROMPTS = [[rng.randrange(97) for _ in range(n)] for n in LENGTHS]
PROMPTS[6] = PROMPTS[5][:50] + PROMPTS[6][50:]  # with a beginning of several blocks in common
FAMILIES = ("llama", "qwen3", "gemma3", "opt-350m", "granite")
RAW = PoolingParams(normalize=False)
TINY: dict[str, Any] = {"skip_tokenizer_init": True, "device": "cpu", "dtype": "float32", "cpu_threads": 1,
                        "max_model_len": 128}


def say(path: Path, kind: str, *, normalize: bool = True) -> None:
    """Write down how embeddings are pooled, as sentence-transformers does."""
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    (path / "modules.json").write_text(json.dumps([
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(modules)]))
    (path / "1_Pooling").mkdir(exist_ok=True)
    modes = dict.fromkeys(("cls_token", "mean_tokens", "lasttoken"), False) | {kind: True}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(
        {"word_embedding_dimension": 64, **{f"pooling_mode_{name}": on for name, on in modes.items()}}))


def expected(reference: Any, prompts: list[list[int]], kind: str) -> list[torch.Tensor]:
    found = []
    with torch.inference_mode():
        for prompt in prompts:
            # transformers turns some families by how long the text is; ours by how long one may be
            ids = torch.tensor([prompt + [0] * (128 - len(prompt))])
            hidden = reference.base_model(ids).last_hidden_state[0, :len(prompt)]
            found.append(hidden[-1] if kind == "lasttoken" else hidden.mean(0))
    return found


def vectors(llm: LLM, prompts: list[list[int]], params: Any = RAW) -> list[torch.Tensor]:
    outputs = llm.embed([{"prompt_token_ids": prompt} for prompt in prompts], pooling_params=params, use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == prompts
    return [torch.tensor(output.outputs.embedding) for output in outputs]


def close(found: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp(request.param)
    return path, write(path, request.param)


@pytest.mark.parametrize("kind", ["lasttoken", "mean_tokens"])
@pytest.mark.parametrize("args", [
    {}, {"max_num_batched_tokens": 16}, {"max_num_batched_tokens": 1, "max_num_seqs": 2}, {"async_scheduling": True},
    {"model_impl": "transformers", "max_num_batched_tokens": 48}], ids=str)
def test_they_are_transformers_hidden_states_pooled(kind: str, args: dict[str, Any], model: tuple[Path, Any]) -> None:
    path, reference = model
    say(path, kind)
    llm = LLM(str(path), **TINY, **args)
    right = expected(reference, PROMPTS, kind)
    close(vectors(llm, PROMPTS), right)
    again = llm.embed([{"prompt_token_ids": PROMPTS[5]}], pooling_params=RAW, use_tqdm=False)[0]
    llm.close()
    close([torch.tensor(again.outputs.embedding)], right[5:6])
    assert (again.num_cached_tokens > 0) is (kind == "lasttoken"), "of a mean no token may be missing"


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][0] != "baichuan" and case not in FAMILIES])
def test_every_family_tells_what_its_last_layer_makes(case: str, tmp_path: Path) -> None:
    reference = write(tmp_path, case)
    say(tmp_path, "mean_tokens")
    llm = LLM(str(tmp_path), **TINY)
    found = vectors(llm, PROMPTS[3:5])
    llm.close()
    close(found, expected(reference, PROMPTS[3:5], "mean_tokens"))


@pytest.mark.parametrize("kind", ["lasttoken", "mean_tokens"])
def test_they_share_steps_with_generation_and_change_none_of_it(kind: str, model: tuple[Path, Any]) -> None:
    """In so little room that some of both are preempted."""
    path, reference = model
    say(path, kind)
    room = {"num_gpu_blocks_override": 40 if path.name.startswith("gemma3") else 14, "max_num_batched_tokens": 10}
    greedy = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    asking = [{"prompt_token_ids": prompt} for prompt in PROMPTS[:4]]
    alone = LLM(str(path), **TINY, **room)
    tokens = [output.outputs[0].token_ids for output in alone.generate(asking, greedy, use_tqdm=False)]
    alone.close()
    llm = LLM(str(path), **TINY, **room)
    scheduler, executor = llm._core.scheduler, llm._core._executor
    preempt, launch = scheduler._preempt_last, executor.launch
    preempted, plans = [], []

    def preempt_last() -> None:
        last = scheduler._running.requests[-1]
        preempted.append((last.pools, last.num_computed))
        preempt()

    scheduler._preempt_last = preempt_last
    executor.launch = lambda plan: (plans.append(plan), launch(plan))[1]

    def prepare(run: Any) -> None:
        for i, prompt in enumerate(reversed(PROMPTS)):
            if i < 4:
                run.prepare(f"g{i}", None, PROMPTS[i], greedy, 0, 0, "", [])
            run.prepare_embedding(f"e{i}", prompt, RAW, priority=int(len(prompt) > 20))

    mixed = llm._run(prepare, use_tqdm=False)
    assert scheduler.kv_usage == 0
    llm.close()
    assert any(pools and num_computed > 10 for pools, num_computed in preempted), "none lost a part that was summed"
    assert any(plan.pooled_places and any(plan.samples) for plan in plans), "no step had both"
    assert [o.outputs[0].token_ids for o in mixed if o.request_id[0] == "g"] == tokens
    close([torch.tensor(o.outputs.embedding) for o in mixed if o.request_id[0] == "e"],
          expected(reference, PROMPTS[::-1], kind))


@pytest.mark.parametrize("kind", ["lasttoken", "mean_tokens"])
@pytest.mark.parametrize("sizes", [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}], ids=str)
def test_two_ranks_equal_transformers(sizes: dict[str, int], kind: str, tmp_path: Path) -> None:
    reference = tiny.write(tmp_path, "llama", num_hidden_layers=4)
    say(tmp_path, kind)
    llm = LLM(str(tmp_path), **TINY, **sizes, max_num_batched_tokens=48, num_gpu_blocks_override=14)
    found = vectors(llm, PROMPTS)
    tokens = llm.generate([{"prompt_token_ids": PROMPTS[2]}], SamplingParams(temperature=0, max_tokens=3),
                          use_tqdm=False)[0].outputs[0].token_ids
    llm.close()
    close(found, expected(reference, PROMPTS, kind))
    assert tokens[0] == int(tiny.logits(reference, PROMPTS[2])[-1].argmax())


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gpt2", "gpt_neox", "phi3"])
def test_a_base_models_checkpoint_embeds_and_does_not_generate(family: str, tmp_path: Path) -> None:
    own = {"pad_token_id": 0, "sliding_window": None} if family == "phi3" else {}
    tiny.write(tmp_path / "whole", family, **own)
    AutoModel.from_pretrained(tmp_path / "whole").eval().save_pretrained(tmp_path / "base")
    reference = AutoModel.from_pretrained(tmp_path / "base").eval()
    llm = LLM(str(tmp_path / "base"), **TINY)
    assert llm.info.generates is False
    with pytest.raises(InvalidRequestError, match=r"no head .* it makes embeddings") as caught:
        llm.generate([{"prompt_token_ids": [1, 2]}], use_tqdm=False)
    assert caught.value.param == "model"
    for plan in warm_up.plans(llm._core.config, samples=False):
        assert llm._core._executor.launch(plan).result().token_ids == []
    found = vectors(llm, PROMPTS)
    llm.close()
    assert found[0].shape == (64,)
    close(found, expected(SimpleNamespace(base_model=reference), PROMPTS, "lasttoken"))


def test_an_untied_head_that_base_files_lack_is_not_missed(tmp_path: Path) -> None:
    """Qwen3-Embedding-8B's files: a base model's, under the name of one that generates."""
    reference = tiny.write(tmp_path / "whole", "qwen3")
    reference.base_model.save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen3ForCausalLM"]}))
    llm = LLM(str(tmp_path / "base"), **TINY)
    assert llm.info.generates is False
    close(vectors(llm, PROMPTS), expected(reference, PROMPTS, "lasttoken"))
    llm.close()


def test_vectors_are_cut_and_then_normalised(tmp_path: Path) -> None:
    reference = tiny.write(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    right = expected(reference, PROMPTS[:3], "lasttoken")

    def asked(params: PoolingParams, **stated: Any) -> list[torch.Tensor]:
        (tmp_path / "config.json").write_text(json.dumps({**config, **stated}))
        llm = LLM(str(tmp_path), **TINY)
        try:
            return vectors(llm, PROMPTS[:3], params)
        finally:
            llm.close()

    close(asked(PoolingParams()), [torch.nn.functional.normalize(one, dim=0) for one in right])
    close(asked(PoolingParams(dimensions=8), is_matryoshka=True),
          [torch.nn.functional.normalize(one[:8], dim=0) for one in right])
    close(asked(PoolingParams(dimensions=16, use_activation=False), matryoshka_dimensions=[16, 32]),
          [one[:16] for one in right])
    say(tmp_path, "lasttoken", normalize=False)
    close(asked(PoolingParams()), right)
    for params, stated, message in (
            (PoolingParams(dimensions=8), {}, "dimensions must be 64 or left out, got 8: .*is_matryoshka"),
            (PoolingParams(dimensions=8), {"matryoshka_dimensions": [16, 32]}, "must be one of 16, 32, got 8"),
            (PoolingParams(dimensions=65), {"is_matryoshka": True}, "at most 64, got 65")):
        with pytest.raises(InvalidRequestError, match=message) as caught:
            asked(params, **stated)
        assert caught.value.param == "dimensions"


@pytest.mark.parametrize(("changes", "message"), [
    ({"modules.json": [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]}, "a module 'Dense'"),
    ({"modules.json": [{"type": "x.Pooling", "path": "../1_Pooling"}]}, "must name a folder"),
    ({"modules.json": [{"type": "x.Pooling", "path": "1_None"}]}, "1_None/config.json: cannot be read"),
    ({"modules.json": {}}, "must hold a list"),
    ({"modules.json": [3]}, "must be an object with a type, one is 3"),
    ({"1_Pooling/config.json": {"pooling_mode_cls_token": True}}, "pooling by 'cls_token' is not supported"),
    ({"1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}}, "mean_tokens.max"),
    ({"1_Pooling/config.json": {"pooling_mode": "weightedmean"}}, "'weightedmean' is not supported"),
    ({"config.json": {"matryoshka_dimensions": [0]}}, "matryoshka_dimensions must be a list of positive"),
    ({"config.json": {"is_causal": False}}, "is_causal is false"),
])
def test_what_is_made_in_another_way_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama")
    say(tmp_path, "mean_tokens")
    for name, value in changes.items():
        stated = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps({**stated, **value} if name == "config.json" else value))
    with pytest.raises(ConfigError, match=message):
        LLM(str(tmp_path), **TINY)


def test_gguf_files_say_it_too() -> None:
    def of(**metadata: Any) -> str:
        return gguf_pooling(Path("m.gguf"), {"general.architecture": "qwen3", **metadata}).kind

    assert (of(), of(**{"qwen3.pooling_type": 1}), of(**{"qwen3.pooling_type": 3})) == ("last", "mean", "last")
    with pytest.raises(ConfigError, match=r"m.gguf: qwen3.pooling_type is 2, which is not supported"):
        of(**{"qwen3.pooling_type": 2})


def test_newer_words_for_the_mean_are_known(tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama")
    say(tmp_path, "mean_tokens")
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    llm = LLM(str(tmp_path), **TINY)
    assert llm.model_config.pooling.kind == "mean"
    llm.close()


def test_the_whole_context_may_be_embedded_and_no_more(tmp_path: Path) -> None:
    reference = tiny.write(tmp_path, "llama")
    llm = LLM(str(tmp_path), **TINY)
    text = [rng.randrange(97) for _ in range(300)]
    with pytest.raises(InvalidRequestError, match=r"context length is 128 tokens here.*contains 129 tokens"):
        vectors(llm, [text[:129]])
    for most, side, kept in ((-1, None, text[:128]), (5, "right", text[:5]), (7, "left", text[-7:])):
        params = PoolingParams(normalize=False, truncate_prompt_tokens=most, truncation_side=side)
        found = llm.embed([{"prompt_token_ids": text}], pooling_params=params, use_tqdm=False)[0]
        assert found.prompt_token_ids == kept
        close([torch.tensor(found.outputs.embedding)], expected(reference, [kept], "lasttoken"))
    data = llm.encode([text[:9]], RAW, use_tqdm=False)[0].outputs.data
    assert data == llm.embed(text[:9], pooling_params=RAW, use_tqdm=False)[0].outputs.embedding
    cut = llm.embed([text], pooling_params=RAW, truncate_prompt_tokens=9, use_tqdm=False)[0]
    assert cut.outputs.embedding == pytest.approx(data, abs=1e-5)
    assert cut.outputs.hidden_size == 64
    llm.close()


def write_with_end(path: Path, end: str, template: str, **config: Any) -> Any:
    """A model of some architecture whose tokenizer.json puts `end` behind each text, by `template`."""
    rust = RustTokenizer.from_str(trained().to_str())
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(["<s>", end])
    rust.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(text, rust.token_to_id(text)) for text in ("<s>", end)])
    reference = tiny.write(path, vocab_size=rust.get_vocab_size(), **config)
    rust.save(str(path / "tokenizer.json"))
    return reference, rust


@pytest.mark.parametrize(("family", "end", "template"), [
    ("qwen3", "<|endoftext|>", "$A <|endoftext|>"), ("mistral", "</s>", "<s> $A </s>")])
def test_texts_end_as_the_tokenizer_ends_them(family: str, end: str, template: str, tmp_path: Path) -> None:
    """Qwen3-Embedding's and E5-Mistral's conventions: the vector is that of a token behind the text."""
    reference, rust = write_with_end(tmp_path, end, template, family=family)
    llm = LLM(str(tmp_path), **{**TINY, "skip_tokenizer_init": False})
    texts = ["Instruct: Find it\nQuery: licensed work", "work", "the licensed work " * 7]
    outputs = llm.embed(texts, pooling_params=RAW, use_tqdm=False)
    ids = [rust.encode(text).ids for text in texts]
    assert [output.prompt_token_ids for output in outputs] == ids
    assert all(each[-1] == rust.token_to_id(end) for each in ids)
    close([torch.tensor(output.outputs.embedding) for output in outputs], expected(reference, ids, "lasttoken"))
    for side, inner in (("right", slice(4)), ("left", slice(-4, None))):
        params = PoolingParams(truncate_prompt_tokens=4 + len(template.split()) - 1, truncation_side=side)
        cut = llm.embed(texts[2], pooling_params=params, use_tqdm=False)[0].prompt_token_ids
        whole = rust.encode(texts[2], add_special_tokens=False).ids
        assert cut == [*ids[2][:cut[0] == rust.token_to_id("<s>")], *whole[inner], ids[2][-1]]
    long = llm.embed("licensed work " * 18_000, truncate_prompt_tokens=-1, use_tqdm=False)
    assert len(long[0].prompt_token_ids) == 128
    assert long[0].prompt_token_ids[-1] == ids[0][-1]
    llm.close()


@pytest.mark.parametrize(("asked", "param"), [
    ({"dimensions": 0}, "dimensions"), ({"dimensions": "8"}, "dimensions"), ({"normalize": 2}, "normalize"),
    ({"normalize": True, "use_activation": False}, "normalize"), ({"truncate_prompt_tokens": 0},
    "truncate_prompt_tokens"), ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"truncation_side": "middle"}, "truncation_side"), ({"task": "classify"}, "task"),
    ({"step_tag_id": 3}, "step_tag_id"), ({"late_interaction_params": {}}, "late_interaction_params")])
def test_what_cannot_be_asked_for_is_refused_by_its_field(asked: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        PoolingParams(**asked)
    assert caught.value.param == param


async def test_the_asynchronous_engine_encodes(tmp_path: Path) -> None:
    reference = tiny.write(tmp_path, "llama")
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model=str(tmp_path), **TINY))
    try:
        async def vector_of(prompt: list[int]) -> torch.Tensor:
            outputs = [output async for output in engine.encode({"prompt_token_ids": prompt}, RAW)]
            assert len(outputs) == 1
            assert outputs[0].prompt_token_ids == prompt
            return torch.tensor(outputs[0].outputs.data)

        close(await asyncio.gather(*map(vector_of, PROMPTS)), expected(reference, PROMPTS, "lasttoken"))
        with pytest.raises(InvalidRequestError, match="contains 129 tokens"):
            await vector_of([1] * 129)
    finally:
        await engine.close()
