"""Ours = transformers, whatever way the prompt is cut into steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from quire.engine.errors import ConfigError
from quire.engine.model_registry import FAMILIES
from tests.engine.models import tiny
from tests.engine.models.families import CASES, LLAMA3, write
from tests.engine.models.paging import PagedRun, load

PROMPT = [(31 * i + i * i) % tiny.SIZES["vocab_size"] for i in range(75)]


def test_every_family_has_a_case() -> None:
    names = {config.get("architecture") or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind] for kind, config in CASES.values()}
    # Those that take images have cases of their own.
    assert {FAMILIES[name].model for name in names} == {f.model for f in FAMILIES.values() if f.vision is None}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_however_the_prompt_is_cut(case: str, tmp_path: Path) -> None:
    expected = tiny.logits_of(write(tmp_path, case), [PROMPT], 128)[0]
    assert expected.std() > 0.5, "too flat a model to tell right from wrong"
    model = load(tmp_path)
    cuts = {"whole": [75], "chunks": [20, 1, 33, 16, 5], "tokens": [1] * 75}
    for name, lengths in cuts.items():
        run, parts, start = PagedRun(model, 1, 128), [], 0
        for length in lengths:
            parts.append(run.step({0: PROMPT[start:start + length]})[0])
            start += length
        torch.testing.assert_close(torch.cat(parts), expected, atol=1e-4, rtol=1e-4,
                                   msg=lambda message, name=name: f"{name}: {message}")


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "opt", "qwen3"])
def test_where_only_last_tokens_go_on_they_are_what_they_were_and_all_is_in_the_cache(family: str, tmp_path: Path
                                                                                      ) -> None:
    reference = tiny.write(tmp_path, family)
    run = PagedRun(load(tmp_path), 3, 128)
    prompts = {0: PROMPT[:17], 1: PROMPT[10:60], 2: PROMPT[3:40]}
    ends = dict.fromkeys(prompts, 0)
    for lengths in ({0: 4, 1: 30}, {0: 1, 2: 30, 1: 5}, {2: 1, 1: 1, 0: 2}, {0: 1, 1: 1, 2: 1}):
        chunks = {s: prompts[s][ends[s]:ends[s] + n] for s, n in lengths.items()}
        for s, got in run.step(chunks, only_last=max(lengths.values()) > 1).items():
            ends[s] += lengths[s]
            expected = tiny.logits(reference, prompts[s][:ends[s]])[-1:]
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_sequences_of_a_batch_do_not_see_each_other(tmp_path: Path) -> None:
    reference = tiny.write(tmp_path, "llama")
    run = PagedRun(load(tmp_path), 3, 128)
    prompts = {0: PROMPT[:17], 1: PROMPT[10:60], 2: PROMPT[3:40]}
    first = run.step({s: tokens[:-2] for s, tokens in prompts.items()})
    mixed = run.step({2: prompts[2][-2:-1], 0: prompts[0][-2:], 1: prompts[1][-2:]})
    last = run.step({2: prompts[2][-1:]})
    for s, tokens in prompts.items():
        got = torch.cat([first[s], mixed[s], *([last[s]] if s in last else [])])
        torch.testing.assert_close(got, tiny.logits(reference, tokens), atol=1e-4, rtol=1e-4)


def test_several_files_load_as_one(tmp_path: Path) -> None:
    reference = tiny.write(tmp_path, "qwen2", max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    got = PagedRun(load(tmp_path), 1, 128).step({0: PROMPT})[0]
    torch.testing.assert_close(got, tiny.logits(reference, PROMPT), atol=1e-4, rtol=1e-4)


def test_configs_of_older_transformers_read_alike(tmp_path: Path) -> None:
    reference = tiny.write(tmp_path, "llama", rope_parameters=LLAMA3)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    config["torch_dtype"] = config.pop("dtype")
    file.write_text(json.dumps(config))
    got = PagedRun(load(tmp_path), 1, 128).step({0: PROMPT})[0]
    torch.testing.assert_close(got, tiny.logits(reference, PROMPT), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_near_float32(dtype: str, tmp_path: Path) -> None:
    reference = tiny.write(tmp_path, "qwen2")
    expected = tiny.logits(reference, PROMPT)
    got = PagedRun(load(tmp_path, dtype=dtype), 1, 128).step({0: PROMPT})[0]
    assert got.dtype == getattr(torch, dtype)
    assert (got.float() - expected).norm() < 0.05 * expected.norm()


def test_an_unknown_activation_is_refused_by_name(tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama", hidden_act="relu")
    with pytest.raises(ConfigError, match="'relu'"):
        load(tmp_path)
