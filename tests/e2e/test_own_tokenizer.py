"""A checkpoint with a SentencePiece file and several chat templates, as Gemma came: served without transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.server import KEY, Server, serving, start
from tests.engine.models import tiny
from tests.engine.tokenizers.test_sentencepiece_tokenizer import FIXTURES, fixture

REFUSING = """{{ bos_token }}{% for message in messages %}
{% if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
<start_of_turn>{{ message.role }} {{ message.content }}
{% endfor %}"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gemma")
    tiny.write(path, "gemma", vocab_size=432, head_dim=16)
    shutil.copy(FIXTURES / "gemma.model", path / "tokenizer.model")
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": [
        {"name": "default", "template": "{{ messages[0].content }}"}, {"name": "refusing", "template": REFUSING}]}))
    ends = list(range(2, 430))  # nearly all: the first token ends the reply
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "temperature": 0.0}))
    return path


@pytest.fixture(scope="module")
def gemma(checkpoint: Path) -> Iterator[Server]:
    with serving("--model", str(checkpoint), "--served-model-name", "gemma", "--max-model-len", "128",
                 "--chat-template", "refusing") as server:
        yield server


def test_a_template_that_refuses_the_system_role_says_so_itself(gemma: Server) -> None:
    messages: list[Any] = [{"role": "system", "content": "You help."}, {"role": "user", "content": "Hi"}]
    with gemma.client() as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="gemma", messages=messages)
    assert caught.value.status_code == 400
    assert caught.value.body == {"message": "System role not supported", "type": "BadRequestError", "param": "messages",
                                 "code": 400}


def test_prompts_are_the_files_and_replies_end_at_any_of_the_ends(gemma: Server) -> None:
    def post(path: str, **body: object) -> Any:
        reply = httpx.post(gemma.url + path, headers={"authorization": f"Bearer {KEY}"}, timeout=60, json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    messages = [{"role": "user", "content": "the  work"}]
    ids = post("/tokenize", model="gemma", messages=messages)["tokens"]
    assert ids == fixture("gemma").encode("<s><start_of_turn>user the  work\n", False)
    assert post("/detokenize", model="gemma", tokens=ids)["prompt"] == "<s><start_of_turn>user the  work\n"
    reply = post("/v1/chat/completions", model="gemma", messages=messages, max_tokens=50)
    assert reply["usage"]["completion_tokens"] == 1


def test_a_name_that_no_template_has_is_refused_with_those_that_there_are(checkpoint: Path) -> None:
    server = start("--model", str(checkpoint), "--chat-template", "rag")
    assert server.wait_exit(60) == 2
    assert "'rag' is neither one of the model's (default, refusing)" in "".join(server.lines)
