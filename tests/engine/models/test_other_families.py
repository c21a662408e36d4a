"""Decoders that have no file here run by transformers' own code, through our cache, and give its logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from quire.engine.errors import ConfigError
from tests.engine.models import tiny
from tests.engine.models.paging import PagedRun, load
from tests.engine.models.test_against_transformers import PROMPT

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("cohere", {"eos_token_id": 2, "logit_scale": 0.5}),
    "starcoder2": ("starcoder2", {}),
    "phi": ("phi", {"num_key_value_heads": 4}),
    "persimmon": ("persimmon", {"num_key_value_heads": 4}),
    "exaone4": ("exaone4", {"layer_types": ["full_attention"] * 3, "sliding_window": None}),
    "native": ("llama", {}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_logits_equal_transformers_however_the_prompt_is_cut(case: str, tmp_path: Path) -> None:
    family, config = OTHERS[case]
    reference = tiny.write(tmp_path, family, **config)
    model = load(tmp_path, model_impl="transformers")
    run, seconds = PagedRun(model, 2, 128), PROMPT[5:50]
    first = run.step({0: PROMPT[:20], 1: seconds[:-1]})
    parts = [first[0], *(run.step({0: PROMPT[i:i + 1]})[0] for i in range(20, 30)),
             run.step({1: seconds[-1:], 0: PROMPT[30:]})[0]]
    torch.testing.assert_close(torch.cat(parts), tiny.logits(reference, PROMPT), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(first[1], tiny.logits(reference, seconds)[:-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("changes", "said"), [
    ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "has an encoder"),
    ({"architectures": ["FooForCausalLM"], "layer_types": ["full_attention", "linear_attention"]},
     "recurrent state .linear_attention."),
    ({"architectures": ["FooForCausalLM"], "add_cross_attention": True}, "cross attention"),
    ({"architectures": ["FooForCausalLM"], "model_type": "foo", "auto_map": {"AutoModelForCausalLM": "foo.Foo"}},
     "runs no code out of checkpoints"),
])
def test_what_cannot_run_is_refused_by_its_reason_before_weights_are_read(changes: dict[str, Any], said: str,
                                                                          tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    read: list[float] = []
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, progress=lambda phase, fraction: read.append(fraction))
    assert not any(read)
