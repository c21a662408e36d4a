"""Embeddings over HTTP, by OpenAI's client and by hand: transformers' hidden states of SmolLM2, in every form that is
asked for, and refusals that name the field."""

from __future__ import annotations

import base64
import math
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoModel

from quire.engine.config import DEFAULT_MODEL
from tests.conftest import ReferenceModel
from tests.e2e.server import KEY, Server, serving, until
from tests.engine.models import tiny

TEXTS = ["The capital of France is Paris.", "A", "Wind über dem Meer, 海の風 🌊. " * 30]


def ask(server: Server, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/embeddings", headers={"authorization": f"Bearer {KEY}"}, timeout=60,
                      json=fields)


def token_ids(server: Server, text: str) -> list[int]:
    ids: list[int] = httpx.post(f"{server.url}/tokenize", headers={"authorization": f"Bearer {KEY}"},
                                json={"prompt": text}).json()["tokens"]
    return ids


@pytest.fixture(scope="module")
def expected(server: Server, reference_model: ReferenceModel) -> list[list[float]]:
    """Of TEXTS, as transformers makes them of the same file. It would read the tokenizer of a GGUF file for long."""
    body = reference_model.model.base_model
    with torch.inference_mode():
        last = [body(torch.tensor([token_ids(server, text)])).last_hidden_state[0, -1] for text in TEXTS]
    return [torch.nn.functional.normalize(one.float(), dim=0).tolist() for one in last]


def near(found: list[float], right: list[float]) -> bool:
    return math.dist(found, right) < 2e-3


def test_openais_client_gets_transformers_vectors(server: Server, expected: list[list[float]]) -> None:
    """It asks for base64 where nothing is said."""
    client = server.client()
    reply = client.embeddings.create(model=DEFAULT_MODEL, input=TEXTS, user="somebody")
    assert [item.index for item in reply.data] == [0, 1, 2]
    assert all(near(item.embedding, right) for item, right in zip(reply.data, expected))
    assert all(math.hypot(*item.embedding) == pytest.approx(1, abs=1e-5) for item in reply.data)
    assert reply.usage.prompt_tokens == reply.usage.total_tokens > 100
    floats = client.embeddings.create(model=DEFAULT_MODEL, input=TEXTS[0], encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(reply.data[0].embedding, abs=1e-5)
    assert (floats.object, floats.data[0].object, floats.model) == ("list", "embedding", DEFAULT_MODEL)


def test_ids_and_lists_of_them_are_as_good_as_text(server: Server) -> None:
    ids = [token_ids(server, text) for text in TEXTS[:2]]
    texts, lists = (ask(server, input=given).json() for given in (TEXTS[:2], ids))
    assert texts["id"].startswith("embd-")
    assert texts["usage"] == lists["usage"] == {"prompt_tokens": sum(map(len, ids)),
                                                "total_tokens": sum(map(len, ids))}
    one = ask(server, input=ids[0], encoding_format="base64").json()["data"][0]["embedding"]
    raw = base64.b64decode(one)
    for item in (texts["data"][0], lists["data"][0]):
        assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == pytest.approx(item["embedding"], abs=1e-5)


def test_raw_vectors_and_cut_inputs_are_to_be_had(server: Server) -> None:
    unit = ask(server, input=TEXTS[0]).json()["data"][0]["embedding"]
    raw = ask(server, input=TEXTS[0], use_activation=False).json()["data"][0]["embedding"]
    length = math.hypot(*raw)
    assert length > 2
    assert [value / length for value in raw] == pytest.approx(unit, abs=1e-5)
    whole = ask(server, input="The capital").json()
    cut = ask(server, input=TEXTS[0], truncate_prompt_tokens=2).json()
    assert cut["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"] == 2
    assert cut["data"][0]["embedding"] == pytest.approx(whole["data"][0]["embedding"], abs=1e-5)
    end = ask(server, input=TEXTS[0], truncate_prompt_tokens=2, truncation_side="left").json()["data"][0]["embedding"]
    assert math.dist(end, cut["data"][0]["embedding"]) > 0.01
    assert ask(server, input="x " * 5000, truncate_prompt_tokens=60).json()["usage"]["prompt_tokens"] == 60
    assert ask(server, input=[5] * 5000, truncate_prompt_tokens=-1).json()["usage"]["prompt_tokens"] == 1024
    assert ask(server, input=[5] * 1024).json()["usage"]["prompt_tokens"] == 1024


@pytest.mark.parametrize(("fields", "param", "says"), [
    ({"input": ""}, "input", "input is empty"), ({"input": []}, "input", "must not be an empty list"),
    ({"input": ["a", ""]}, "input", r"input[1] is empty"), ({"input": [[1], []]}, "input", "input[1] is empty"),
    ({}, "input", "The field input is missing"), ({"input": 5}, "input", "must be text or a list"),
    ({"input": [{"text": "a"}]}, "input", "takes text, a list of texts"),
    ({"input": [7] * 1025}, "input", "maximum context length is 1024 tokens here"),
    ({"input": "word " * 1100}, "input", "contains 1101 tokens"), ({"input": [99999]}, "input", "99999"),
    ({"input": ["a"] * 1025}, "input", "at most 1024 prompts (--max-prompts), got 1025"),
    ({"input": "a", "encoding_format": "int8"}, "encoding_format", "must be float or base64, got 'int8'"),
    ({"input": "a", "dimensions": 64}, "dimensions", "must be 576 or left out"),
    ({"input": "a", "dimensions": 0}, "dimensions", "at least 1"),
    ({"input": "a", "truncate_prompt_tokens": 2000}, "truncate_prompt_tokens", "at most 1024"),
    ({"input": "a", "priority": 2**40}, "priority", "priority must be from"),
    ({"input": "a", "max_tokens": 5}, "max_tokens", "no request field"),
    ({"input": "a", "embed_dtype": "float16"}, "embed_dtype", "must be float32"),
])
def test_what_cannot_be_embedded_is_refused_by_its_field(fields: dict[str, Any], param: str, says: str,
                                                         server: Server) -> None:
    reply = ask(server, **fields)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["param"], error["type"]) == (param, "BadRequestError")
    assert says in error["message"]


def test_a_key_is_needed_and_a_model_that_is_there(server: Server) -> None:
    assert httpx.post(f"{server.url}/v1/embeddings", json={"input": "a"}).status_code == 401
    with pytest.raises(openai.NotFoundError):
        server.client().embeddings.create(model="another", input="a")


def test_many_beside_generation_are_counted_like_it(server: Server) -> None:
    before = server.metric("vllm:prompt_tokens_total")
    with ThreadPoolExecutor(8) as pool:
        text = pool.submit(server.client().completions.create, model=DEFAULT_MODEL, prompt="Once upon a time",
                           max_tokens=40, temperature=0)
        replies = list(pool.map(lambda i: ask(server, input=[f"{i} {j}" for j in range(10)]), range(6)))
    alone = server.client().completions.create(model=DEFAULT_MODEL, prompt="Once upon a time", max_tokens=40,
                                               temperature=0)
    assert text.result().choices[0].text == alone.choices[0].text
    used = sum(reply.json()["usage"]["prompt_tokens"] for reply in replies)
    assert server.metric("vllm:prompt_tokens_total") >= before + used + 8
    until(lambda: [e for e in server.events("request") if e["path"] == "/v1/embeddings" and e.get("finish")])


def test_who_leaves_takes_all_inputs_along(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/embeddings", headers={"authorization": f"Bearer {KEY}"}, timeout=0.5,
                   json={"input": [[i % 400] * 1000 for i in range(200)]})
    until(lambda: server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting") == 0, 30)


def test_a_model_without_a_head_says_so(tmp_path: Path) -> None:
    tiny.write(tmp_path / "whole", "mistral")
    AutoModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "base")
    with serving("--model", str(tmp_path / "base"), "--max-model-len", "128", "--skip-tokenizer-init", "--task",
                 "embed") as server:
        assert len(ask(server, input=[[1, 2, 3], [4]]).json()["data"][1]["embedding"]) == 64
        reply = httpx.post(f"{server.url}/v1/completions", headers={"authorization": f"Bearer {KEY}"},
                           json={"prompt": [1, 2, 3]})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "model"
    assert "no head" in reply.json()["error"]["message"]
