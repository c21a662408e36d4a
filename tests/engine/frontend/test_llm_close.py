"""An LLM that is closed, or that nobody holds any more, lets go of model and cache at once, collector or not. A call
that runs meanwhile, and one in a forked child, is told so."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quire import LLM, SamplingParams
from quire.engine.errors import EngineDeadError, MisuseError
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


PROMPT, PARAMS = [[1, 2, 3]], SamplingParams(max_tokens=9, detokenize=False, ignore_eos=True)


def with_call_in_a_step(llm: LLM, does: Callable[[], None]) -> None:
    """Has the second step of the engine do something first."""
    real, steps = llm._core.step, iter(range(99))

    def step(*args: Any) -> Any:
        if next(steps) == 1:
            does()
        return real(*args)

    llm._core.step = step  # type: ignore[method-assign]


def test_closing_from_another_thread_ends_a_call_after_its_step_and_those_that_wait(tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama")
    llm = LLM(model=str(tmp_path), skip_tokenizer_init=True, device="cpu")
    failures: list[BaseException] = []

    def call() -> None:
        try:
            llm.generate(PROMPT, PARAMS, use_tqdm=False)
        except BaseException as error:
            failures.append(error)

    in_step, closing = threading.Event(), threading.Event()

    def meanwhile() -> None:
        in_step.set()
        closing.wait(10)

    with_call_in_a_step(llm, meanwhile)
    calls = [threading.Thread(target=call) for _ in range(2)]
    for thread in calls:
        thread.start()
    assert in_step.wait(10)
    closer = threading.Thread(target=llm.close)
    closer.start()
    while not llm._closing:
        pass
    assert closer.is_alive(), "it waits for the step"
    closing.set()
    for thread in (closer, *calls):
        thread.join(10)
        assert not thread.is_alive()
    assert sorted(str(error).split(";")[0] for error in failures) == [
        "This LLM was closed while it generated.",
        "This LLM was closed, or a step of an earlier call ended in its middle"]
    assert all(isinstance(error, EngineDeadError) for error in failures)
    assert not hasattr(llm._core._executor, "_runner")


def test_closing_within_a_call_as_a_signal_handler_does_ends_it_after_its_step(tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama")
    llm = LLM(model=str(tmp_path), skip_tokenizer_init=True, device="cpu")
    with_call_in_a_step(llm, llm.close)
    with pytest.raises(EngineDeadError, match="closed while it generated"):
        llm.generate(PROMPT, PARAMS, use_tqdm=False)
    assert not hasattr(llm._core._executor, "_runner")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_told_what_to_do(tmp_path: Path) -> None:
    tiny.write(tmp_path, "llama")
    llm = LLM(model=str(tmp_path), skip_tokenizer_init=True, device="cpu")
    if not (child := os.fork()):
        try:
            llm.close()
            llm.generate(PROMPT, PARAMS)
        except MisuseError as error:
            os._exit(7 if "spawn" in str(error) else 8)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert llm.generate(PROMPT, PARAMS, use_tqdm=False)
    llm.close()
