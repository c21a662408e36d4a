"""Every field that a generating endpoint takes: one that does what its name says, or that says why not.

A field without a case fails the test, so that none is forgotten.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from quire.app.schemas.chat import ChatRequest
from quire.app.schemas.completions import CompletionRequest
from quire.engine.config import DEFAULT_MODEL
from tests.e2e.server import KEY, Server

PROMPT = "The three colours of the flag of France, one after the other, are red, red, red, red, red, red,"
SAY: list[Any] = [{"role": "user", "content": "Say hello."}]
A, END = 253, 2  # SmolLM2's tokens of " a" and of the end
ALL_A = {"allowed_token_ids": [A]}
ALL_END = {"allowed_token_ids": [END], "ignore_eos": True}
DRAWN = {"temperature": 1.0, "seed": 7}
BEAMS = {"use_beam_search": True, "n": 2}
OBJECT = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
TAG = {"type": "structural_tag", "structures": [{"begin": "<f>", "schema": OBJECT, "end": "</f>"}], "triggers": ["<f>"]}

MUST_CALL: dict[str, Any] = {"tool_choice": "required", "max_tokens": 100, "tools": [{"type": "function", "function": {
    "name": "f", "parameters": {**OBJECT, "properties": {"a": {"const": 1}}}}}]}

Reply = dict[str, Any]
Case = tuple[dict[str, Any], Callable[[Reply, Reply], bool]]  # fields, and what holds of the reply beside a plain one


def text(reply: Reply, index: int = 0) -> str:
    choice = reply["choices"][index]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def matches(form: str) -> Callable[[Reply, Reply], bool]:
    return lambda reply, plain: re.fullmatch(form, text(reply)) is not None


def refused(param: str) -> Callable[[Reply, Reply], bool]:
    return lambda reply, plain: reply.get("error", {}).get("param") == param


def is_plain(reply: Reply, plain: Reply) -> bool:
    return text(reply) == text(plain)


def called(reply: Reply) -> list[tuple[str, Any]]:
    functions = [call["function"] for call in reply["choices"][0]["message"]["tool_calls"]]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


def finish(reply: Reply) -> str:
    return str(reply["choices"][0]["finish_reason"])


def is_object(reply: Reply, plain: Reply) -> bool:
    return re.fullmatch(r'\{\s*"a"\s*:\s*[12]\s*\}', text(reply).strip()) is not None


def is_other(reply: Reply, plain: Reply) -> bool:
    return text(reply) != text(plain)


GENERATION: dict[str, Case] = {
    "model": ({"model": "no-such-model"}, lambda reply, plain: "no-such-model" in reply["error"]["message"]),
    "n": ({"n": 3, **DRAWN}, lambda reply, plain: len({text(reply, i) for i in range(3)}) > 1),
    "best_of": ({"use_beam_search": True, "best_of": 3}, lambda reply, plain: len(reply["choices"]) == 1),
    "stream": ({"stream": True}, lambda reply, plain: reply["num_chunks"] > 4 and is_plain(reply, plain)),
    "stream_options": ({"stream": True, "stream_options": {"include_usage": True}},
                       lambda reply, plain: reply["usage"]["total_tokens"] == plain["usage"]["total_tokens"]),
    "use_beam_search": (BEAMS, lambda reply, plain: text(reply) != text(reply, 1)),
    "length_penalty": ({**BEAMS, "length_penalty": "long"}, refused("length_penalty")),
    "early_stopping": ({**BEAMS, "early_stopping": "sometimes"}, refused("early_stopping")),
    "length_counts_prompt": ({**BEAMS, "length_counts_prompt": True}, lambda reply, plain: len(reply["choices"]) == 2),
    "max_tokens": ({"max_tokens": 3}, lambda reply, plain: reply["usage"]["completion_tokens"] == 3),
    "min_tokens": ({"allowed_token_ids": [A, END], "logit_bias": {str(END): 100}, "min_tokens": 5},
                   lambda reply, plain: text(reply) == " a" * 5 and finish(reply) == "stop"),
    "temperature": ({"temperature": 2.0, "seed": 3}, is_other),
    "top_p": ({**DRAWN, "top_p": 1e-6}, is_plain),
    "top_k": ({**DRAWN, "top_k": 1}, is_plain),
    "min_p": ({**DRAWN, "min_p": 1.0}, is_plain),
    "seed": ({**DRAWN, "seed": "seven"}, refused("seed")),
    "stop": ({**ALL_A, "stop": "a a a"}, lambda reply, plain: (text(reply), finish(reply)) == (" ", "stop")),
    "stop_token_ids": ({**ALL_A, "stop_token_ids": [A]}, lambda reply, plain: reply["choices"][0]["stop_reason"] == A),
    "presence_penalty": ({"allowed_token_ids": [A, 260], "presence_penalty": 2.0},
                         lambda reply, plain: len(set(text(reply).split())) == 2),
    "frequency_penalty": ({"allowed_token_ids": [A, 260], "frequency_penalty": 2.0},
                          lambda reply, plain: len(set(text(reply).split())) == 2),
    "repetition_penalty": ({"repetition_penalty": 2.0}, is_other),
    "logit_bias": ({"logit_bias": {str(A): 100}}, lambda reply, plain: text(reply) == " a" * 8),
    "allowed_token_ids": (ALL_A, lambda reply, plain: text(reply) == " a" * 8),
    "bad_words": ({**ALL_A, "bad_words": ["a"]}, lambda reply, plain: "No token is left" in reply["error"]["message"]),
    "prompt_logprobs": ({"prompt_logprobs": 1}, lambda reply, plain: len(
        reply.get("prompt_logprobs") or reply["choices"][0]["prompt_logprobs"]) == reply["usage"]["prompt_tokens"]),
    "ignore_eos": (ALL_END, lambda reply, plain: finish(reply) == "length"),
    "skip_special_tokens": ({**ALL_END, "skip_special_tokens": False}, matches(r"(<\|im_end\|> ?){8}")),
    "spaces_between_special_tokens": (
        {**ALL_END, "skip_special_tokens": False, "spaces_between_special_tokens": False},
        matches(r"(<\|im_end\|>){8}")),
    "include_stop_str_in_output": ({**ALL_A, "stop": "a a", "include_stop_str_in_output": True}, matches(" a a")),
    "priority": ({"priority": 2**40}, refused("priority")),
    "cache_salt": ({"cache_salt": "x" * 1000}, refused("cache_salt")),
    "add_special_tokens": ({"add_special_tokens": False}, is_plain),
    "response_format": ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": OBJECT}},
                         "max_tokens": 60}, is_object),
    "structured_outputs": ({"structured_outputs": {"choice": ["left", "right"]}}, matches("left|right")),
    "guided_json": ({"guided_json": OBJECT, "max_tokens": 60}, is_object),
    "guided_regex": ({"guided_regex": "[A-Z]{3}"}, matches("[A-Z]{3}")),
    "guided_choice": ({"guided_choice": ["left", "right"]}, matches("left|right")),
    "guided_grammar": ({"guided_grammar": 'root ::= "yes" | "no"'}, matches("yes|no")),
    "guided_whitespace_pattern": ({"guided_json": OBJECT, "guided_whitespace_pattern": "_", "max_tokens": 60},
                                  matches(r'\{_?"a"_?:_?[12]_?\}')),
    "guided_decoding_backend": ({"guided_regex": "x", "guided_decoding_backend": "any"}, matches("x")),
    "structural_tag": ({"structural_tag": {**TAG, "triggers": ["f"]}}, refused("structural_tag")),
}
COMPLETIONS: dict[str, Case] = {
    **GENERATION,
    "prompt": ({"prompt": ["One", "Two"]}, lambda reply, plain: len(reply["choices"]) == 2),
    "echo": ({"echo": True}, lambda reply, plain: text(reply) == PROMPT + text(plain)),
    "logprobs": ({"logprobs": 2}, lambda reply, plain: [
        len(top) for top in reply["choices"][0]["logprobs"]["top_logprobs"]] == [2] * 8),
}
CHAT: dict[str, Case] = {
    **GENERATION,
    "messages": ({"messages": []}, refused("messages")),
    "max_completion_tokens": ({"max_completion_tokens": 2},
                              lambda reply, plain: reply["usage"]["completion_tokens"] == 2),
    "logprobs": ({"logprobs": True}, lambda reply, plain: len(reply["choices"][0]["logprobs"]["content"]) == 8),
    "top_logprobs": ({"logprobs": True, "top_logprobs": 3}, lambda reply, plain: {
        len(one["top_logprobs"]) for one in reply["choices"][0]["logprobs"]["content"]} == {3}),
    "add_generation_prompt": ({"add_generation_prompt": False},
                              lambda reply, plain: reply["usage"]["prompt_tokens"] < plain["usage"]["prompt_tokens"]),
    "chat_template_kwargs": ({"chat_template_kwargs": "none"}, refused("chat_template_kwargs")),
    "tools": (MUST_CALL, lambda reply, plain: called(reply)[0] == ("f", {"a": 1})),
    "tool_choice": ({**MUST_CALL, "tool_choice": "none"}, lambda reply, plain: not called(reply)),
    "parallel_tool_calls": ({**MUST_CALL, "max_tokens": 200, "parallel_tool_calls": False},
                            lambda reply, plain: len(called(reply)) == 1 and finish(reply) == "tool_calls"),
    "include_reasoning": ({"include_reasoning": False}, is_plain),  # SmolLM2 does not think
    "reasoning_effort": ({"reasoning_effort": "huge"}, refused("reasoning_effort")),
    "thinking_token_budget": ({"thinking_token_budget": 5}, refused("thinking_token_budget")),
    "continue_final_message": ({"messages": [*SAY, {"role": "assistant", "content": "Hello, hello, hel"}],
                                "add_generation_prompt": False, "continue_final_message": True},
                               lambda reply, plain: text(reply).startswith("lo")),
    "echo": ({"echo": True}, refused("echo")),
    "mm_processor_kwargs": ({"mm_processor_kwargs": {"max_pixels": 0}}, refused("mm_processor_kwargs")),
}


@pytest.fixture(scope="module")
def plain(server: Server) -> dict[str, Reply]:
    return {path: ask(server, path, {}) for path in ("completions", "chat/completions")}


def ask(server: Server, path: str, fields: dict[str, Any]) -> Reply:
    """A stream's chunks as one reply."""
    own = {"prompt": PROMPT} if path == "completions" else {"messages": SAY}
    body = {"model": DEFAULT_MODEL, "max_tokens": 8, "temperature": 0, **own, **fields}
    reply = httpx.post(f"{server.url}/v1/{path}", headers={"authorization": f"Bearer {KEY}"}, timeout=60, json=body)
    if not body.get("stream"):
        return dict(reply.json())
    chunks = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    parts = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    whole = "".join(part["text"] if "text" in part else part["delta"].get("content") or "" for part in parts)
    return {"choices": [{"text": whole}], "num_chunks": len(chunks), "usage": chunks[-1].get("usage")}


@pytest.mark.parametrize(("path", "cases", "request_type"), [
    ("completions", COMPLETIONS, CompletionRequest), ("chat/completions", CHAT, ChatRequest)])
def test_every_field_does_what_it_says(server: Server, plain: dict[str, Reply], path: str, cases: dict[str, Case],
                                       request_type: type) -> None:
    of_others = getattr(request_type, "OF_OTHERS", {})
    assert cases.keys() == {*request_type.__struct_fields__, *of_others}  # type: ignore[attr-defined]
    with ThreadPoolExecutor(8) as pool:  # that many in a step cost hardly more than one
        replies = list(pool.map(lambda case: ask(server, path, case[0]), cases.values()))
    wrong = []
    for (name, (fields, holds)), reply in zip(cases.items(), replies):
        try:
            if holds(reply, plain[path]):
                continue
        except LookupError:
            pass
        wrong.append(f"{name}: {fields} gave {json.dumps(reply)[:600]}")
    assert not wrong, "\n".join(wrong)
