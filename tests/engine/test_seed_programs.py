"""Programs that users of such engines already have run here with another import line.

They stand here as tutorials print them, save for the model, fewer new tokens, and one CPU thread: a second would wait
for whatever else the machine runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from quire import LLM, SamplingParams
from tests.e2e.server import alive, until

MODEL = "smollm2-135m-instruct"
START_S = 60.0


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(model=MODEL, cpu_threads=1)


def test_the_function_get_completion(smollm2_path, monkeypatch, capsys):
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")

    def get_completion(prompts, model, tokenizer=None, max_tokens=512, temperature=0.8, top_p=0.95,
                       max_model_len=2048):
        stop_token_ids = [151329, 151336, 151338]
        sampling_params = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=max_tokens,
                                         stop_token_ids=stop_token_ids)
        llm = LLM(model=model, tokenizer=tokenizer, max_model_len=max_model_len, trust_remote_code=True,
                  cpu_threads=1)
        outputs = llm.generate(prompts, sampling_params)
        return outputs

    text = ["你好，帮我介绍一下什么时大语言模型。",
            "可以给我将一个有趣的童话故事吗？"]
    outputs = get_completion(text, str(smollm2_path), tokenizer=None, max_tokens=8, temperature=1, top_p=1,
                             max_model_len=2048)
    for output in outputs:
        prompt = output.prompt
        generated_text = output.outputs[0].text
        print(f"Prompt: {prompt!r}, Generated text: {generated_text!r}")

    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Prompt: ")]
    assert len(printed) == 2
    assert all(line.startswith(f"Prompt: {prompt!r}, Generated text: ") for line, prompt in zip(printed, text))
    assert all(len(output.outputs[0].token_ids) == 8 or output.outputs[0].finish_reason == "stop"
               for output in outputs)


def test_four_prompts(llm):
    prompts = [
        "Hello, my name is",
        "The president of the United States is",
        "The capital of France is",
        "The future of AI is",
    ]
    sampling_params = SamplingParams(temperature=0.8, top_p=0.95)
    outputs = llm.generate(prompts, sampling_params)
    assert [output.prompt for output in outputs] == prompts
    for output in outputs:
        assert output.finished
        assert output.outputs[0].text
        assert len(output.outputs[0].token_ids) == 16 or output.outputs[0].finish_reason == "stop"


def test_every_form_of_prompt_gives_the_same(llm):
    text = "The capital of France is"
    ids = llm.get_tokenizer().encode(text)
    sampling_params = SamplingParams(temperature=0, max_tokens=6)
    forms = [text, [text], {"prompt": text}, {"prompt_token_ids": ids, "prompt": None}, [{"prompt_token_ids": ids}],
             ids]
    results = [llm.generate(form, sampling_params=sampling_params) for form in forms]
    assert all(len(result) == 1 for result in results)
    assert {result[0].outputs[0].text for result in results} == {results[0][0].outputs[0].text}
    assert "Paris" in results[0][0].outputs[0].text
    assert results[3][0].prompt is None
    assert all(result[0].prompt_token_ids == ids for result in results)


def test_chat_renders_what_generate_takes_rendered(llm, smollm2_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)
    messages = [{"role": "system", "content": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
                {"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    sampling_params = SamplingParams(temperature=0, repetition_penalty=1, max_tokens=12)
    rendered = llm.generate([text], sampling_params=sampling_params)
    chatted = llm.chat(messages, sampling_params)
    assert chatted[0].prompt == text
    assert chatted[0].outputs[0].text == rendered[0].outputs[0].text
    assert "Paris" in chatted[0].outputs[0].text


def test_chat_takes_the_defaults_of_such_programs_by_place_and_by_name(llm):
    messages = [{"role": "user", "content": "Hi"}]
    greedy = SamplingParams(temperature=0, max_tokens=4)
    expected = llm.chat(messages, greedy)[0].outputs[0].token_ids
    by_place = llm.chat([messages, messages], greedy, False, None, None, "auto", True, False, None, None)
    by_name = llm.chat(messages, greedy, use_tqdm=False, lora_request=None, tools=[], continue_final_message=False,
                       chat_template_kwargs={}, mm_processor_kwargs=None)
    assert [output.outputs[0].token_ids for output in (*by_place, *by_name)] == [expected] * 3
    assert llm.chat([], greedy) == []


@pytest.mark.slow
def test_a_model_split_over_devices_answers_alike():
    """The seed's four GPUs, here three CPU ranks: the packaged model has three KV heads."""
    greedy = SamplingParams(temperature=0, max_tokens=8)
    llm = LLM("smollm2-135m-instruct", tensor_parallel_size=3)
    output = llm.generate("San Franciso is a", greedy)
    llm.close()
    assert output[0].outputs[0].text == LLM().generate("San Franciso is a", greedy)[0].outputs[0].text


def accepts(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 405  # it takes POST
    except httpx.ConnectError:
        return False


@pytest.fixture
def async_server() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, Path(__file__).with_name("seed_async_server.py"), str(port)],
                               cwd=Path(__file__).parents[2], env=os.environ | {"PYTHONPATH": "."})
    try:
        yield process, f"http://127.0.0.1:{port}/api"
    finally:
        process.kill()
        process.wait()


async def test_an_async_engine_behind_a_web_application_streams_to_two_at_once(async_server):
    process, url = async_server
    order: list[str] = []
    started = asyncio.Event()

    async def read(name: str) -> list[str]:
        contents = []
        async with httpx.AsyncClient(timeout=START_S) as client, client.stream("POST", url) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                answer = json.loads(line)
                assert answer["success"] is True
                contents.append(answer["content"])
                order.append(name)
                started.set()
        return contents

    await asyncio.to_thread(until, lambda: accepts(url), START_S)
    first = asyncio.create_task(read("first"))
    await started.wait()
    second = await read("second")
    for contents in (await first, second):
        assert len(contents) > 8, "it came in pieces"
        assert all(later.startswith(earlier) for earlier, later in pairwise(contents)), "each is the whole so far"
    last_of_first = len(order) - 1 - order[::-1].index("first")
    assert order.index("second") < last_of_first, "both ran at once"

    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    engines = [int(pid) for pid in children
               if b"quire.engine" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    assert engines
    # Such a program knows of nothing to close: Ctrl-C ends it, and its engine with it.
    process.send_signal(signal.SIGINT)
    await asyncio.to_thread(until, lambda: process.poll() is not None)
    await asyncio.to_thread(until, lambda: not any(alive(pid) for pid in engines))
