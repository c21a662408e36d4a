"""An LLM that is closed, or that nobody holds any more, lets go of model and cache at once, collector or not."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from quire import LLM, SamplingParams
from quire.engine.errors import EngineDeadError
from tests.engine.models import tiny


@pytest.mark.parametrize("closed", [True, False])
def test_nothing_is_left(closed: bool, tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama")
    llm = LLM(model=str(tmp_path), skip_tokenizer_init=True, device="cpu")
    llm.generate([[1, 2, 3]], SamplingParams(max_tokens=3, detokenize=False), use_tqdm=False)
    runner = llm._core._executor._runner  # type: ignore[attr-defined]
    left = [weakref.ref(runner), weakref.ref(runner.model), weakref.ref(runner.kv_caches[0][0])]
    del runner
    gc.disable()
    try:
        if closed:
            llm.close()
        else:
            del llm
        assert [thing() for thing in left] == [None] * 3
    finally:
        gc.enable()


def test_a_closed_one_says_so_and_may_be_closed_again(tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama")
    llm = LLM(model=str(tmp_path), skip_tokenizer_init=True, device="cpu")
    llm.close()
    llm.close()
    with pytest.raises(EngineDeadError, match="was closed"):
        llm.generate([[1, 2, 3]], SamplingParams(max_tokens=3, detokenize=False))
