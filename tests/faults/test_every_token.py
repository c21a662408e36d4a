"""A stream is the same wherever its engine is killed: after each of its tokens in turn, for three streams.

The engine ends itself right after it has told the token, so that every place is tried and none twice. Its model is so
small that the next is there in a fraction of a second, and has SmolLM2's vocabulary; what it says is nonsense, in form.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from quire import AsyncLLMEngine, CompletionOutput, SamplingParams
from tests.faults import tool_call
from tests.faults.engines import ARGS, FRAGILE_PROGRAM, PROMPT, connected

EVERY = int(os.environ.get("KILL_EVERY", "1"))  # 1: after each token
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Mortal:
    """An engine that can be told when to die, and is there again soon after."""

    engine: AsyncLLMEngine
    order: Path

    async def reply(self, name: str, wish: SamplingParams, die_after: int | None = None) -> list[CompletionOutput]:
        if die_after is not None:
            self.order.write_text(str(die_after))
        outputs = [output.outputs async for output in self.engine.generate({"prompt_token_ids": PROMPT}, wish, name)]
        return outputs[-1]

    def known(self) -> int:
        """How many tokens the client knew when the engine had died."""
        return int(self.order.with_suffix(".known").read_text())


SMALL = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
         "vocab_size": 49152, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "torch_dtype": "float32", "eos_token_id": 2}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mortal(tmp_path_factory: pytest.TempPathFactory, smollm2_path: Path) -> AsyncIterator[Mortal]:
    folder = tmp_path_factory.mktemp("mortal")
    (folder / "config.json").write_text(json.dumps(SMALL))
    args = replace(ARGS, model=str(folder), tokenizer=str(smollm2_path), load_format="dummy")
    address, order = f"ipc://{folder}/engine.sock", folder / "order"
    process = subprocess.Popen(
        [sys.executable, "-m", FRAGILE_PROGRAM, "--address", address, "--args", msgspec.json.encode(args).decode()],
        env=os.environ | {"FRAGILE_DIE_AFTER": str(order), "OMP_NUM_THREADS": "1"}, start_new_session=True)
    try:
        engine = await connected(address, args)
        yield Mortal(engine, order)
        await engine.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def alike_wherever_it_is_killed(mortal: Mortal, name: str, wish: SamplingParams) -> list[CompletionOutput]:
    """The samples that an engine gives to `wish`, and gives again when it dies after any token but the last."""
    undisturbed = await mortal.reply(f"{name} undisturbed", wish)
    deaths = range(1, max(len(sample.token_ids) for sample in undisturbed), EVERY)
    different = []
    for die_after in deaths:
        num_restarts = mortal.engine.num_restarts
        disturbed = await asyncio.wait_for(mortal.reply(f"{name} {die_after}", wish, die_after), 120)
        assert mortal.engine.num_restarts == num_restarts + 1
        # The second sample is a token behind, and alone once the first is complete.
        assert mortal.known() in (die_after, die_after - 1)
        if list(map(told, disturbed)) != list(map(told, undisturbed)):
            different.append(die_after)
        if wish.logprobs is not None:
            for one, other in zip(disturbed, undisturbed, strict=True):
                assert one.cumulative_logprob == pytest.approx(other.cumulative_logprob, abs=1e-2)
    print(f"\n{name}: the same bytes after {len(deaths) - len(different)} of {len(deaths)} deaths")
    assert not different
    return undisturbed


def told(sample: CompletionOutput) -> tuple[object, ...]:
    return list(sample.token_ids), sample.text.encode(), sample.finish_reason, sample.stop_reason


PENALTIES = SamplingParams(n=2, seed=11, temperature=0.8, top_p=0.95, max_tokens=60, min_tokens=4, logprobs=2,
                           repetition_penalty=1.1, presence_penalty=0.3, frequency_penalty=0.2, logit_bias={31: -2.0},
                           bad_words=["foo"])


async def test_a_text_that_ends_with_a_stop_string(mortal: Mortal) -> None:
    """The string begins in one token and ends in another."""
    wish = replace(PENALTIES, ignore_eos=True)
    first = (await mortal.reply("without a stop", wish))[0]
    tokenizer = mortal.engine.tokenizer
    assert tokenizer is not None
    pieces = [tokenizer.decode([id]) for id in first.token_ids]
    at = next(at for at in range(len(first.text) * 3 // 4, len(first.text) - 8)
              if first.text.find(first.text[at:at + 8]) == at
              and not any(first.text[at:at + 8] in piece for piece in pieces))
    stop = first.text[at:at + 8]
    samples = await alike_wherever_it_is_killed(mortal, "stop string", replace(wish, stop=[stop]))
    assert (samples[0].finish_reason, samples[0].stop_reason, samples[0].text) == ("stop", stop, first.text[:at])


async def test_a_form_that_is_filled_in(mortal: Mortal) -> None:
    schema = {"type": "object", "properties": {
        "name": {"type": "string", "maxLength": 40}, "kind": {"enum": ["first kind", "second kind"]},
        "sizes": {"type": "array", "items": {"enum": [1, 22, 333]}, "minItems": 8, "maxItems": 8}},
        "required": ["name", "kind", "sizes"], "additionalProperties": False}
    form = {"json": schema, "disable_any_whitespace": True}
    samples = await alike_wherever_it_is_killed(mortal, "form", replace(
        PENALTIES, max_tokens=120, stop=["never said"], structured_outputs=form))
    assert {sample.finish_reason for sample in samples} == {"stop"}
    json.loads(samples[0].text)


async def test_a_tool_that_is_called(mortal: Mortal) -> None:
    for sample in await alike_wherever_it_is_killed(mortal, "tool call", tool_call.wish()):
        tool_call.require_call(sample)
