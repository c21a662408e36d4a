"""Ctrl-C or a fault of ours during LLM.generate: wherever it strikes, the next call gives what it would have given."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quire import LLM, SamplingParams
from quire.engine.errors import EngineDeadError
from quire.engine.frontend.generation import Generation
from quire.engine.frontend.outputs import OutputBuilder
from tests.engine.models import tiny

PROMPTS = [[(31 * i + shift) % 90 for i in range(40)] for shift in (1, 2, 3)]
PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny.write(path, "llama")
    return path


@pytest.fixture
def llm(checkpoint: Path) -> Iterator[LLM]:
    llm = LLM(model=str(checkpoint), skip_tokenizer_init=True, device="cpu")
    yield llm
    llm.close()


def tokens(llm: LLM) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, PARAMS, use_tqdm=False)]


@pytest.mark.parametrize(("where", "call"), [
    ("submit", 3), ("step", 1), ("launch", 1), ("launch", 6), ("result", 1), ("result", 6)])
def test_the_next_call_gives_what_it_would_have_given(llm: LLM, checkpoint: Path, where: str, call: int) -> None:
    core = llm._core
    owner: Any = core._executor if where == "launch" else core
    real = core.scheduler.commit if where == "result" else getattr(owner, where)
    num_calls = 0

    def interrupted(*args: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == call:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    owner, name = (core.scheduler, "commit") if where == "result" else (owner, where)
    setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokens(llm)
    setattr(owner, name, real)
    assert num_calls == call, "the step that was interrupted went on to its end, and no other was begun"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    untouched = LLM(model=str(checkpoint), skip_tokenizer_init=True, device="cpu")
    assert tokens(llm) == tokens(untouched)


@pytest.mark.parametrize("owner", [Generation, OutputBuilder])
def test_a_fault_in_one_prompts_text_ends_the_call_and_not_the_engine(
        llm: LLM, monkeypatch: pytest.MonkeyPatch, owner: type) -> None:
    before = tokens(llm)

    def breaks(*_: Any) -> Any:
        raise ZeroDivisionError("nobody foresaw it")

    with monkeypatch.context() as patched:
        patched.setattr(owner, "push", breaks)
        with pytest.raises(ZeroDivisionError):
            tokens(llm)
    assert tokens(llm) == before


def test_a_second_one_does_not_wait_and_a_broken_engine_says_so(llm: LLM) -> None:
    real = llm._core._executor.launch

    def hangs(plan: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return real(plan)

    llm._core._executor.launch = hangs  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        tokens(llm)
    with pytest.raises(EngineDeadError, match="ended in its middle"):
        tokens(llm)
