"""Every family through the whole engine, in so little room that it chunks, preempts and reads from the prefix cache:
transformers' greedy tokens and their logprobs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quire import LLM, SamplingParams
from quire.engine.kv_groups import BlockNeed
from tests.engine.models import tiny
from tests.engine.models.families import CASES, write
from tests.engine.models.paging import config_of

MAX_LEN, NEW_TOKENS = 128, 18
TEXT = [(31 * i + i * i) % tiny.SIZES["vocab_size"] for i in range(75)]
# With a common beginning of several blocks; longer than the windows, and still decoding where these have moved on.
PROMPTS = [TEXT[:1], TEXT[:40] + TEXT[3:23], TEXT, TEXT[:17], TEXT[:40] + TEXT[9:14], TEXT]
# Steps shorter than the longest prompts, and, by `crowded`, too few blocks for what is let in at once.
STEP_TOKENS, BLOCK = 48, 16
TINY = {"max_model_len": MAX_LEN, "dtype": "float32", "device": "cpu", "cpu_threads": 1}


def crowded(windows: tuple[int | None, ...]) -> int:
    """Blocks for not quite two of the longest."""
    return BlockNeed(windows, BLOCK, STEP_TOKENS).blocks_for(len(TEXT) + NEW_TOKENS) * 5 // 3


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_and_their_logprobs_are_transformers(case: str, tmp_path: Path) -> None:
    reference = write(tmp_path, case)
    windows = config_of(tmp_path).model.kv_groups.windows
    llm = LLM(str(tmp_path), skip_tokenizer_init=True, num_gpu_blocks_override=crowded(windows), max_num_seqs=4,
              max_num_batched_tokens=STEP_TOKENS, **TINY)
    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=3)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], greedy, use_tqdm=False)
    llm.close()
    # Who has windows alone needs no more and more blocks; and what a window has passed is soon taken by others.
    assert llm._core.scheduler.num_preemptions > 0 or None not in windows
    assert outputs[-1].num_cached_tokens >= (64 if windows == (None,) else 32), "the first of two equals had more"
    rows = [prompt + output.outputs[0].token_ids for prompt, output in zip(PROMPTS, outputs)]
    for prompt, output, logits in zip(PROMPTS, outputs, tiny.logits_of(reference, rows, MAX_LEN)):
        sample = output.outputs[0]
        expected = logits[len(prompt) - 1:-1].log_softmax(-1)
        best = expected.max(-1).values
        for place, (token, found) in enumerate(zip(sample.token_ids, sample.logprobs)):
            got = torch.tensor([candidate.logprob for candidate in found.values()])
            torch.testing.assert_close(got, expected[place, list(found)], atol=1e-3, rtol=0)
            assert expected[place, token] > best[place] - 1e-3, f"{token} is not the likeliest at {place}"
