"""Prompts with images on a CUDA device, steps of decodes by CUDA graphs and kernel by kernel.

Along the tokens that the engine chose, its log-probabilities are near those of transformers' float32 model: in
bfloat16, a few times as far off at most as transformers' own model in bfloat16 is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.image_engine import ImageEngine
from tests.engine.models import tiny_vision
from tests.engine.models.tiny_vision import Picture, picture, prompt_of

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

FACTOR = 3.0
FLOOR = {"float32": 3e-3, "bfloat16": 3e-2}
NEW_TOKENS = 24


def chosen(logits: torch.Tensor, ids: list[int], new: list[int]) -> torch.Tensor:
    return logits.float().log_softmax(-1)[range(len(ids) - 1, len(ids) - 1 + len(new)), new]


@pytest.mark.parametrize("enforce_eager", [False, True])
@pytest.mark.parametrize("dtype", FLOOR)
@pytest.mark.parametrize("family", tiny_vision.FAMILIES)
def test_logprobs_are_near_transformers(family: str, dtype: str, enforce_eager: bool, tmp_path: Path) -> None:
    reference = tiny_vision.write(tmp_path, family)
    small, tall, dot, wide = (picture(family, *size, seed=seed) for seed, size in enumerate(
        [(4, 6), (18, 10), (2, 2), (2, 40)]))
    prompts: list[tuple[int | Picture, ...]] = [
        (5, small, 7), (20, tall, 3, small, 9, wide, 4), (60,), (3, dot, 2, dot, 40), (20, tall, 3, small, 30), (1,)]
    args: dict[str, Any] = {"device": "cuda", "dtype": dtype, "kv_cache_memory_bytes": 1 << 26,
                            "enforce_eager": enforce_eager, "max_num_batched_tokens": 64, "max_num_seqs": 8}
    engine = ImageEngine(tmp_path, tmp_path, **args)
    cases = []
    for parts in prompts:
        pictures = [part for part in parts if isinstance(part, Picture)]
        ids = prompt_of(*parts)
        cases.append((ids, pictures, engine.submit(ids, pictures, max_tokens=NEW_TOKENS, logprobs=0)[0]))
    engine.run()
    assert (engine.core.status().num_graph_steps > 0) != enforce_eager
    engine.close()
    rows = [(ids, pictures, sample, chosen(tiny_vision.logits(reference, ids + sample.token_ids, pictures), ids,
                                           sample.token_ids)) for ids, pictures, sample in cases]
    rounded = reference.to(getattr(torch, dtype))
    for ids, pictures, sample, right in rows:
        theirs = chosen(tiny_vision.logits(rounded, ids + sample.token_ids, pictures), ids, sample.token_ids)
        allowed = max(FLOOR[dtype], FACTOR * float((theirs - right).abs().max()))
        found = torch.tensor([token.logprob for token in sample.logprobs])
        assert len(found) == NEW_TOKENS
        assert float((found - right).abs().max()) < allowed


def test_many_images_at_once_give_what_each_gives_alone(tmp_path: Path) -> None:
    """In float32; with prompts' tokens found in the cache, and images whose features are kept."""
    tiny_vision.write(tmp_path, "qwen2_5_vl")
    pictures = [picture("qwen2_5_vl", 2 * (1 + i % 7), 2 * (1 + i % 11), seed=i) for i in range(24)]
    prompts = [(prompt_of(4 + i % 9, one, 6 + i % 5, seed=i), one) for i, one in enumerate(pictures)]
    found = []
    for num_seqs in (1, 24):
        engine = ImageEngine(tmp_path, tmp_path, device="cuda", kv_cache_memory_bytes=1 << 26, max_num_seqs=num_seqs)
        for _ in range(2):
            samples = [engine.submit(ids, [one], max_tokens=4, logprobs=0)[0] for ids, one in prompts]
            engine.run()
            found.append(torch.tensor([[token.logprob for token in sample.logprobs] for sample in samples]))
        assert engine.core.scheduler.num_encoded_images >= len(pictures)
        engine.close()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=2e-3, rtol=0)
